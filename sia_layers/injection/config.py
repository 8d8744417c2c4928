"""The configuration of an injection: what inject_sia needs to inject at the same sites again.

It travels with the weights, as bytes of JSON in the entry ``<first site>._extra_state`` of the state dict.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from sia_layers.attention import SIAttention
from sia_layers.injection.errors import ConfigError
from sia_layers.injection.names import CHILD, EXTRA_STATE

VERSION: Final = 1
LENGTH: Final = 512  # bytes; a stored configuration takes a multiple of this
AGGREGATE_FORMS: Final[dict[bool | str, str | None]] = {True: "published", "pooled": "pooled", False: None}
# Different names of stages may mean the same sites; if the sites differ, so do the keys of the state dict.
NOT_COMPARED: Final = frozenset({"version", "stages", "identity_init", "gain"})
LAYERS: Final = ("act_layer", "gate_layer")  # classes, stored by their names in torch.nn


class Config(NamedTuple):
    """The arguments of inject_sia, with values that JSON can represent.

    Attributes:
        arguments: the arguments by keyword.
    """

    arguments: dict[str, Any]

    @classmethod
    def of(
        cls,
        stages: Iterable[str],
        aggregate: bool | str,
        identity_init: bool,
        where: Mapping[str, Any],
        sia_kwargs: Mapping[str, Any],
    ) -> Config:
        """Return the configuration of an injection, without options that have their default."""
        defaults = inspect.signature(SIAttention).parameters
        changed = {
            name: value
            for name, value in sia_kwargs.items()
            if name not in defaults or value != defaults[name].default  # SIAttention refuses unknown names
        }
        options = {name: _named(value) if name in LAYERS else value for name, value in changed.items()}
        given = {name: list(map(plain, value)) if name == "grid" else value for name, value in where.items()
                if value is not None and value is not False and value != "spatial"}  # fmt: skip
        arguments = {
            "version": VERSION,
            "stages": list(dict.fromkeys(map(str, stages))),
            "aggregate": aggregate,
            "identity_init": identity_init,
            **given,
            **options,
        }
        return cls({name: plain(value) for name, value in arguments.items()})

    @staticmethod
    def check_version(version: int | None) -> None:
        """Check that a configuration is not from a later version of the library.

        Raises:
            ConfigError: it is.
        """
        if version is not None and (not isinstance(version, int) or version > VERSION):
            raise ConfigError(
                f"the configuration has version {version!r}, and sia-layers "
                f"{importlib.metadata.version('sia-layers')} supports versions up to {VERSION}; install a newer one"
            )

    def to_tensor(self) -> Tensor:
        """Return the configuration as bytes of JSON, filled up with spaces.

        torch.distributed.checkpoint loads no tensor of another size, so configurations should not differ in length.
        """
        text = json.dumps(self.arguments).encode()
        return torch.tensor(list(text.ljust(LENGTH * -(-len(text) // LENGTH))), dtype=torch.uint8, device="cpu")

    @classmethod
    def from_tensor(cls, state: Any) -> Config | None:
        """Read the result of :meth:`to_tensor`; return None for anything else, such as the average of several."""
        try:
            arguments = json.loads(bytes(state.tolist()))
        except (AttributeError, TypeError, ValueError):
            return None
        return cls(arguments) if isinstance(arguments, dict) else None

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """Return the arguments in which two configurations differ, with both values."""
        names = {**self.arguments, **other.arguments}.keys() - NOT_COMPARED
        pairs = {name: (self.arguments.get(name), other.arguments.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def config_in(state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of inject_sia that a state dict carries; None if it carries none."""
    for name, value in state_dict.items():
        parts = name.split(".")
        if parts[-1] == EXTRA_STATE and CHILD in parts:
            config = Config.from_tensor(value)
            if config is not None:
                return config.arguments
    return None


def plain(value: Any) -> Any:
    """Return any number, or an array or tensor of one, as Python's own, which JSON and a safe ``torch.load`` accept."""
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1:
        return value.item()
    return float(value) if isinstance(value, Fraction) else value


def resolved(name: str, value: Any) -> Any:
    """Return the class that a configuration names; return any other argument as it is.

    Raises:
        ConfigError: torch.nn has no such class.
    """
    if name not in LAYERS or not isinstance(value, str):
        return value
    found = getattr(nn, value, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"{name}={value!r} is not a class of torch.nn; pass the class itself, {name}=...")
    return found


def _named(layer: Any) -> str:
    """Return the name of a layer's class in torch.nn, or a name that :func:`resolved` refuses."""
    if isinstance(layer, str):
        return layer
    name = getattr(layer, "__name__", type(layer).__name__)
    return name if getattr(nn, name, None) is layer else f"{getattr(layer, '__module__', '')}.{name}"
