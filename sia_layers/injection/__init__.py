"""Self-Information Attention in a model that exists: put it in, take it out, and find its parts again."""

from sia_layers.injection.errors import (
    AlreadyInjectedError,
    DryRunError,
    FiringError,
    InjectionError,
    LayoutError,
    NoStagesError,
    NotInjectedError,
    OffTrunkError,
    OutputTypeError,
    ReentrantCheckpointError,
    StateDictError,
    UnknownStageError,
    UnsupportedModelError,
)
from sia_layers.injection.inject import eject_sia, inject_sia
from sia_layers.injection.sites import Site, find_sites
from sia_layers.injection.state import load_sia_state_dict, sia_modules, sia_parameters, sia_state_dict

__all__ = [
    "AlreadyInjectedError",
    "DryRunError",
    "FiringError",
    "InjectionError",
    "LayoutError",
    "NoStagesError",
    "NotInjectedError",
    "OffTrunkError",
    "OutputTypeError",
    "ReentrantCheckpointError",
    "Site",
    "StateDictError",
    "UnknownStageError",
    "UnsupportedModelError",
    "eject_sia",
    "find_sites",
    "inject_sia",
    "load_sia_state_dict",
    "sia_modules",
    "sia_parameters",
    "sia_state_dict",
]
