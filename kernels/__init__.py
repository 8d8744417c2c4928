"""Self-information kernels: one definition, several backends."""
