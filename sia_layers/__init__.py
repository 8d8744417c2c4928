"""Self-Information Attention (SIA) layers for PyTorch vision models."""
