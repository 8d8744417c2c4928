"""Test whether attention helps on your own pictures; see ``python -m benchmarks.compare --help``."""
