"""Repeat the experiments of the paper's supplement on available data: ``python -m benchmarks.reproduction --help``."""
