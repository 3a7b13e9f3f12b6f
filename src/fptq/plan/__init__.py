"""Where quantizers stand: profiles, placement, encodings and the Q/DQ file."""
