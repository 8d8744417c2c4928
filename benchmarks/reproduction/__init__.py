"""The experiments of the paper's supplement, on data that can be had: ``python -m benchmarks.reproduction --help``."""
