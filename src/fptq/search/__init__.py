"""Decisions by measurement: which placements pay on this machine."""
