"""Changes to a model that keep what it computes, or bring it nearer to float after quantization."""
