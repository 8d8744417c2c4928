"""Find the state dict in a file that a training script saved, and load it completely or not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from sia_layers.cli.common import Refusal, refusing
from sia_layers.cli.weights import read_file
from sia_layers.injection import find_sites, inject_sia
from sia_layers.injection.config import config_in
from sia_layers.injection.errors import InjectionError, nearest
from sia_layers.injection.names import CHILD, EXTRA_STATE

# The keys under which scripts keep their weights; of several that fit equally well, the first takes precedence.
WITHIN: Final = (
    *("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "backbone", "module"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "ema"),
)
# What wrappers prepend to all keys, and what they insert anywhere.
PREFIXES: Final = (
    *("module.", "model.", "backbone.", "net.", "network.", "encoder."),
    *("base_model.", "_model.", "_module.", "_forward_module."),
)
WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
EXTRA: Final = f".{EXTRA_STATE}"  # a module's own state, which a checkpoint may lack
INJECTED: Final = f".{CHILD}."  # in the keys of SIA's parameters
BOOKKEEPING: Final = frozenset({"n_averaged"})  # AveragedModel counts the models in its average


@dataclass(frozen=True)
class Checkpoint:
    """A state dict and where it was found.

    Attributes:
        path: the file.
        within: the keys that lead to the state dict in the file; empty if the file is the state dict.
        state: the tensors, under the names of the model if they are recognised.
        ignored: names of what wrappers saved for themselves.
    """

    path: Path
    within: tuple[str, ...]
    state: dict[str, Tensor]
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Describe the weights in words."""
        notes = [".".join(self.within)] if self.within else []
        notes += [f"without {name}" for name in self.ignored]
        return f"weights of {self.path.name}" + (f" ({', '.join(notes)})" if notes else "")


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """Return all state dicts in a file, without running any code that the file names.

    Raises:
        Refusal: the file cannot be read or has none.
    """
    found: list[Checkpoint] = []
    left: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), read_file(path))]
    seen: set[int] = set()
    while left:
        within, held = left.pop()
        if id(held) in seen:  # a dict may contain itself
            continue
        seen.add(id(held))
        items = [(key, value) for key, value in dict.items(held) if isinstance(key, str)]
        state = {key: value for key, value in items if isinstance(value, Tensor)}
        if state:
            found.append(Checkpoint(path, within, state))
        left += [((*within, key), value) for key, value in reversed(items) if isinstance(value, dict)]
    if not found:
        raise Refusal(f"{path} holds no state dict: no tensors by name")
    return found


def fitting(checkpoints: Iterable[Checkpoint], model: nn.Module) -> Checkpoint:
    """Return the checkpoint that fits a model best, with its tensors under the model's names."""
    own = model.state_dict().keys()
    return min((_renamed(checkpoint, own) for checkpoint in checkpoints), key=lambda one: _rank(one, own))


def _rank(checkpoint: Checkpoint, own: Collection[str]) -> tuple[int, list[int], int]:
    fits = sum(key in own for key in checkpoint.state)
    places = [WITHIN.index(key) if key in WITHIN else len(WITHIN) for key in checkpoint.within]
    return -fits, places if fits else [], -len(checkpoint.state)


def _renamed(checkpoint: Checkpoint, own: Collection[str]) -> Checkpoint:
    ignored = [key for key in checkpoint.state if key not in own and _is_bookkeeping(key)]
    names = own_names([key for key in checkpoint.state if key not in ignored], own)
    state = {name: checkpoint.state[key] for key, name in names.items()}
    return replace(checkpoint, state=state, ignored=tuple(sorted({key.rpartition(".")[2] for key in ignored})))


def _is_bookkeeping(key: str) -> bool:
    *around, name = key.split(".")
    return name in BOOKKEEPING and all(part in WRAPPERS or f"{part}." in PREFIXES for part in around)


def own_names(keys: Collection[str], own: Collection[str]) -> dict[str, str]:
    """Strip wrappers' prefixes from keys, only as far as that makes the most keys names of the model.

    A model may itself have names that begin with such a prefix, so the number of matching names decides.

    Args:
        keys: of a checkpoint.
        own: names in the model's state dict.

    Returns:
        The stripped name of each key.
    """
    names = {key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in keys}
    best, most = dict(zip(keys, keys, strict=True)), sum(key in own for key in keys)
    while len(set(names.values())) == len(names):  # never merge two keys
        fits = sum(name in own for name in names.values())
        if fits > most:
            best, most = names, fits
        counts = {prefix: sum(name.startswith(prefix) for name in names.values()) for prefix in PREFIXES}
        prefix = max(counts, key=lambda prefix: counts[prefix])
        if not counts[prefix]:
            break
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    return best


def inject_as_saved(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Inject SIA as in a checkpoint, if it has parameters of SIA."""
    arguments = injected_as(model, checkpoint)
    if arguments is not None:
        with refusing(InjectionError, ValueError):
            inject_sia(model, **arguments)


def injected_as(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the arguments of inject_sia that give a model the parameters of a checkpoint; None if it has no SIA."""
    return config_in(checkpoint.state) or _guessed(model, checkpoint.state)


def _guessed(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Any] | None:
    """Infer the arguments from the names of the parameters, for older checkpoints, which hold no configuration."""
    names = {prefix for prefix, found, _ in (key.partition(INJECTED) for key in state) if found}
    if not names:
        return None
    parts = {key.partition(INJECTED)[2] for key in state if INJECTED in key}
    arguments: dict[str, Any] = {
        "aggregate": any(part.startswith("aggregation.") for part in parts),
        "identity_init": "gain" in parts,
        "channel": "excite" if "fc1.weight" in parts else "mean",
    }
    try:
        default = {site.host for site in find_sites(model)} == names
    except InjectionError:
        default = False
    return arguments if default else {**arguments, "stages": sorted(names)}


def load(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a state dict that must match the model in every key and shape.

    Raises:
        Refusal: it does not, or a parameter of SIA is not finite.
    """
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    path = checkpoint.path
    _check_names(checkpoint, own)
    state = {}
    for key, value in checkpoint.state.items():
        if key.endswith(EXTRA):
            state[key] = value
            continue
        if value.shape != own[key].shape and not value.numel() == own[key].numel() == 1:
            raise Refusal(f"{path} has {key!r} of shape {tuple(value.shape)}, the model of {tuple(own[key].shape)}")
        if INJECTED in key and value.is_floating_point() and not torch.isfinite(value).all():
            raise Refusal(
                f"{path} has {key!r} with values that are not finite: it was never initialised, as happens if the "
                "weights of a model are loaded after SIA is injected; call reset_sia_parameters(model) before "
                "training, or load first and inject after"
            )
        state[key] = value.reshape(own[key].shape)  # a scalar may be () or (1,)
    model.load_state_dict(state, strict=False)


def _check_names(checkpoint: Checkpoint, own: Collection[str]) -> None:
    path, state = checkpoint.path, [key for key in checkpoint.state if not key.endswith(EXTRA)]
    unknown = [key for key in state if key not in own]
    if unknown and len(unknown) == len(state):
        raise Refusal(
            f"{path} holds the weights of another model, or of the same model in another library: it has "
            f"{unknown[0]!r} and no key of this model; {nearest(unknown[0], own)}"
        )
    # Batch norms in old checkpoints have no counter of batches.
    missing = [key for key in own if key not in checkpoint.state and not key.endswith(("num_batches_tracked", EXTRA))]
    if unknown:
        raise Refusal(f"{path} has {unknown[0]!r}, which the model does not have; {nearest(unknown[0], own)}")
    if missing:
        raise Refusal(f"{path} lacks {missing[0]!r}, which the model has ({len(missing)} in all)")
