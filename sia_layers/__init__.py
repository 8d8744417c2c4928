"""Self-Information Attention (SIA) layers for PyTorch vision models."""

from importlib.metadata import version

from sia_layers.aggregation import SIAggregation
from sia_layers.attention import SelfInformation, SIAttention
from sia_layers.frequency import FrequencySIAttention, frequency_self_information
from sia_layers.functional import average_self_information, self_information
from sia_layers.injection import (
    InjectionError,
    Site,
    disable_sia,
    eject_sia,
    find_sites,
    inject_sia,
    load_sia_state_dict,
    reset_sia_parameters,
    sia_config,
    sia_modules,
    sia_parameters,
    sia_state_dict,
)
from sia_layers.inspection import LayerProfile, capture_self_information, profile_self_information
from sia_layers.kernels.backends import available_backends, explain_backend, use_backend

__version__ = version("sia-layers")

__all__ = [
    "FrequencySIAttention",
    "InjectionError",
    "LayerProfile",
    "SIAggregation",
    "SIAttention",
    "SelfInformation",
    "Site",
    "__version__",
    "available_backends",
    "average_self_information",
    "capture_self_information",
    "disable_sia",
    "eject_sia",
    "explain_backend",
    "find_sites",
    "frequency_self_information",
    "inject_sia",
    "load_sia_state_dict",
    "profile_self_information",
    "reset_sia_parameters",
    "self_information",
    "sia_config",
    "sia_modules",
    "sia_parameters",
    "sia_state_dict",
    "use_backend",
]
