"""The names under which an injection puts modules and attributes into a model, and finds them again."""

from __future__ import annotations

from typing import Final

CHILD: Final = "sia"  # of a host: its SIA module
EXTRA_STATE: Final = "_extra_state"  # in a state dict: what torch's get_extra_state returns, here the configuration
PATCHES: Final = "_sia_patches"  # attribute of a module that makes patches: its own full name
RELAY: Final = "_sia_relay"  # attribute of every host and of every module that makes patches


def child_of(host: str) -> str:
    """Return the full name of the SIA module of a host; ``""`` names the model itself."""
    return f"{host}.{CHILD}" if host else CHILD
