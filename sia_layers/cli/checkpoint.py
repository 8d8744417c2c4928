"""Checkpoints: read without running code of theirs, and loaded whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from sia_layers.cli.common import Refusal, refusing
from sia_layers.injection import find_sites
from sia_layers.injection.errors import InjectionError, nearest

WITHIN: Final = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
AROUND: Final = ("module.", "_orig_mod.", "model.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without what training scripts put around it and its keys."""
    held = _read(path)
    for key in WITHIN:
        if isinstance(held.get(key), dict):
            held = held[key]
            break
    state = {key: value for key, value in held.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise Refusal(f"{path} holds no state dict: no tensors by name")
    for prefix in AROUND:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise Refusal(f"cannot read {path}: " + ("it is no file" if path.exists() else "there is no such file"))
    if path.suffix == ".safetensors":
        with refusing(ImportError, advice="pip install safetensors"):
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        with refusing(OSError, SafetensorError, advice=f"{path} cannot be read"):
            return load_file(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refusal(
            f"{path} holds more than tensors, or is no checkpoint, and is not loaded; "
            "save it again as torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # whatever a file that is no checkpoint leads the reader to
        raise Refusal(f"cannot read {path}: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(held, dict):
        raise Refusal(f"{path} holds a {type(held).__name__}, not a state dict")
    return held


def injected_as(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Any] | None:
    """The arguments of inject_sia that give a model the parameters in a state dict; None if it holds no SIA."""
    names = {prefix for prefix, found, _ in (key.partition(".sia.") for key in state) if found}
    if not names:
        return None
    parts = {key.partition(".sia.")[2] for key in state if ".sia." in key}
    hidden = {state[f"{name}.sia.fc1.weight"].shape[0] for name in names if f"{name}.sia.fc1.weight" in state}
    arguments: dict[str, Any] = {
        "aggregate": any(part.startswith("aggregation.") for part in parts),
        "identity_init": "gain" in parts,
        "channel": "excite" if hidden else "mean",
    }
    try:
        default = {site.host for site in find_sites(model)} == names
    except InjectionError:
        default = False
    return arguments if default else {**arguments, "stages": sorted(names)}


def load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict that must fit in every key and shape."""
    own = model.state_dict()
    # Batch norms of old checkpoints do not count their batches.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    if unknown:
        raise Refusal(f"{path} has {unknown[0]!r}, which the model has not; {nearest(unknown[0], own)}")
    if missing:
        raise Refusal(f"{path} lacks {missing[0]!r}, which the model has ({len(missing)} in all)")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise Refusal(f"{path} has {key!r} as {tuple(value.shape)}, the model as {tuple(own[key].shape)}")
    model.load_state_dict(state, strict=False)
