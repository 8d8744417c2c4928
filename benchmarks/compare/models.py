"""A timm model that classifies pictures as real or fake, built in the same way for every variant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from benchmarks.compare.variants import VARIANTS
from sia_layers import sia_modules
from sia_layers.cli.checkpoint import fitting, read_checkpoints


class Classifier(nn.Module):
    """A timm model with one logit, for pictures in [0, 1].

    Args:
        model: model with one output.
        mean: mean of each channel, which is subtracted.
        std: standard deviation of each channel, by which the difference is divided.

    Shape:
        float pictures (N, 3, H, W), RGB in [0, 1], to logits (N,); a logit above 0 means fake.
    """

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits.flatten()

    def gains(self) -> list[nn.Parameter]:
        """Return SIA's gains, which go from the identity, 0, to the published formula, 1."""
        return [
            parameter
            for module in sia_modules(self.model).values()
            for name, parameter in module.named_parameters()
            if name.rpartition(".")[2] == "gain"
        ]


def native_size(name: str) -> int:
    """Return the picture size that a timm model declares, as a side in pixels.

    Raises:
        ValueError: if timm has no such model.
    """
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return int(getattr(_declared(name), "input_size", (3, 224, 224))[-1])


def make(name: str, variant: str, size: int, seed: int, checkpoint: Path | None, pretrained: bool) -> Classifier:
    """Build a model with a variant; the seed determines its new weights, the same for all variants.

    Args:
        name: name of the model in timm.
        variant: a key of ``VARIANTS``.
        size: side of the pictures in pixels.
        seed: seed of the new weights.
        checkpoint: file with the model's weights, with or without another classifier.
        pretrained: whether to use timm's weights, from the network or its cache.

    Raises:
        ValueError: if the checkpoint does not fit.
        InjectionError: if the model does not support the variant.
    """
    fixed = {"img_size": size} if getattr(_declared(name), "fixed_input_size", False) else {}
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=pretrained, num_classes=1, **fixed)
    if checkpoint is not None:
        _load(model, checkpoint)
    config = resolve_model_data_config(model)
    VARIANTS[variant].attach(model, torch.zeros(2, 3, size, size))
    return Classifier(model, config["mean"], config["std"])


def _declared(name: str) -> Any:
    """Return what timm declares about a model's input, or None."""
    return timm.get_pretrained_cfg(name, allow_unregistered=True)


def _load(model: nn.Module, path: Path) -> None:
    """Load a checkpoint's weights, except those of a classifier with another number of classes."""
    state = fitting(read_checkpoints(path), model).state
    own = model.state_dict()
    classifier: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    others = {key: value for key, value in state.items() if not key.startswith(heads)} if heads else state
    wrong = [key for key, value in others.items() if key not in own or own[key].shape != value.shape]
    missing = [key for key in own if key not in others and not key.startswith(heads or ("\0",))]
    if wrong or missing:
        raise ValueError(
            f"{path} does not fit the model: {len(wrong)} of its tensors are unknown to it or of another shape "
            f"({', '.join(wrong[:3]) or 'none'}), and it lacks {len(missing)} ({', '.join(missing[:3]) or 'none'})"
        )
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(fits, strict=False)
