"""Self-Information Attention (SIA) layers for PyTorch vision models."""

from importlib.metadata import version

from sia_layers.aggregation import SIAggregation
from sia_layers.attention import SelfInformation, SIAttention
from sia_layers.functional import average_self_information, self_information
from sia_layers.kernels.backends import available_backends, explain_backend, use_backend

__version__ = version("sia-layers")

__all__ = [
    "SIAggregation",
    "SIAttention",
    "SelfInformation",
    "__version__",
    "available_backends",
    "average_self_information",
    "explain_backend",
    "self_information",
    "use_backend",
]
