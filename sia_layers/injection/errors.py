"""What inject_sia refuses, a class for each reason; the model is untouched whenever one is raised."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InjectionError(Exception):
    """A model that Self-Information Attention cannot be injected into as asked; the message says what to do."""


class UnknownStageError(InjectionError, ValueError):
    """A stage was asked for that the model does not have."""


class NoStagesError(InjectionError, ValueError):
    """Nothing tells where the stages of this model are."""


class AlreadyInjectedError(InjectionError):
    """The model holds SIA already."""


class NotInjectedError(InjectionError):
    """The model holds no SIA."""


class FiringError(InjectionError):
    """A site does not run exactly once in a forward pass."""


class OffTrunkError(InjectionError):
    """The model's output does not hang on a site's output alone: a path leads around it."""


class OutputTypeError(InjectionError):
    """A site gives something else than one tensor, such as a list of maps."""


class LayoutError(InjectionError):
    """It is not known where a site's output has its channels, rows and columns."""


class UnsupportedModelError(InjectionError):
    """A kind of module that cannot be changed in place: ScriptModules, wrappers of torch.distributed."""


class ReentrantCheckpointError(InjectionError):
    """The model is checkpointed in the reentrant way, which hides the graph from every hook."""


class ConfigError(InjectionError, ValueError):
    """A configuration that this version of the library cannot follow."""


class DryRunError(InjectionError):
    """The model itself failed on the example input."""


class StateDictError(InjectionError, KeyError):
    """A state dict that does not fit the injected modules."""

    def __str__(self) -> str:
        return str(self.args[0])


def nearest(name: str, known: Iterable[str]) -> str:
    """An ending for a message: the names that come nearest, or the first few there are."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    shown = ", ".join(names[:8])
    return f"there are {shown}{', ...' if len(names) > 8 else ''}" if names else "there are none"
