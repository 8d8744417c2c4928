"""Inject Self-Information Attention into an existing model, eject it, and access its modules and parameters."""

from sia_layers.injection.candidates import Site
from sia_layers.injection.errors import (
    AlreadyInjectedError,
    ConfigError,
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
from sia_layers.injection.sites import find_sites
from sia_layers.injection.state_dict import (
    disable_sia,
    load_sia_state_dict,
    reset_sia_parameters,
    sia_config,
    sia_modules,
    sia_parameters,
    sia_state_dict,
)

__all__ = [
    "AlreadyInjectedError",
    "ConfigError",
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
    "disable_sia",
    "eject_sia",
    "find_sites",
    "inject_sia",
    "load_sia_state_dict",
    "reset_sia_parameters",
    "sia_config",
    "sia_modules",
    "sia_parameters",
    "sia_state_dict",
]
