"""Does attention help on your own pictures? ``python -m benchmarks.compare --help``."""
