"""The commands of ``python -m sia_layers``."""
