"""Kernels of the self-information: one definition, several backends."""
