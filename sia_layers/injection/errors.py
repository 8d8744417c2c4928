"""The errors of inject_sia, one class for each reason. The model is unchanged whenever one is raised."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InjectionError(Exception):
    """Raised if SIA cannot be injected into a model as requested; the message says what to do."""


class UnknownStageError(InjectionError, ValueError):
    """Raised for a stage that the model does not have."""


class NoStagesError(InjectionError, ValueError):
    """Raised if nothing tells where the stages of the model are."""


class AlreadyInjectedError(InjectionError):
    """Raised if the model already has SIA."""


class NotInjectedError(InjectionError):
    """Raised if the model has no SIA."""


class FiringError(InjectionError):
    """Raised if a site does not run in a forward pass, or not in turn with the other sites."""


class OffTrunkError(InjectionError):
    """Raised if some path from input to output bypasses the site, so gating it would not gate the signal."""


class OutputTypeError(InjectionError):
    """Raised if a module returns no feature map that a site could gate."""


class LayoutError(InjectionError):
    """Raised if it is unknown which axes of a site's output are channels, rows and columns."""


class UnsupportedModelError(InjectionError):
    """Raised for modules that cannot be changed in place, such as ScriptModules and wrappers of torch.distributed."""


class ReentrantCheckpointError(InjectionError):
    """Raised for reentrant checkpointing, which hides the autograd graph from hooks."""


class ConfigError(InjectionError, ValueError):
    """Raised for a configuration that this version of the library does not support."""


class DryRunError(InjectionError):
    """Raised if the model itself fails on the example input."""


class StateDictError(InjectionError, KeyError):
    """Raised for a state dict that does not match the injected modules."""

    def __str__(self) -> str:
        return str(self.args[0])


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message: the known names closest to ``name``, or else the first few known names."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    shown = ", ".join(names[:8])
    return f"there are {shown}{', ...' if len(names) > 8 else ''}" if names else "there are none"
