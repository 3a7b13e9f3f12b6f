"""Fine-grained post-training quantization for scientific deep learning."""

__version__ = "0.1.0"
