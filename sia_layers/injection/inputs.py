"""The arguments of a dry run: what the model declares, or an example of any structure that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from sia_layers.injection.errors import DryRunError, NoStagesError
from sia_layers.injection.families import config_of, family_of, origin
from sia_layers.kernels.private_torch import pytree

EXAMPLE_ADVICE: Final = "pass an example_input that it takes"


class Inputs(NamedTuple):
    """The arguments of a model's forward pass.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        of_batch: whether they are from a loader's batch, and not from an example or the model's declaration.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    of_batch: bool = False

    @property
    def picture(self) -> Tensor:
        """The first floating-point tensor of four or five axes, or else of three, as in a list of pictures.

        Raises:
            DryRunError: there is none.
        """
        tensors = [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]
        for axes in ((4, 5), (3,)):
            for tensor in tensors:
                if tensor.is_floating_point() and tensor.dim() in axes:
                    return tensor
        found = ", ".join(f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in tensors) or "no tensor at all"
        raise DryRunError(
            f"{'a batch' if self.of_batch else 'the example input'} must hold a picture, a floating-point tensor "
            f"(N, C, H, W) or (N, C, T, H, W) such as torch.empty(1, 3, 224, 224), got {found}; pass pictures as the "
            "model receives them, after conversion"
        )

    @property
    def advice(self) -> str:
        """What to do if the model fails on the arguments."""
        if self.of_batch:
            return "batches must hold what it takes, such as pictures (N, C, H, W); for a single batch x, pass [x]"
        return EXAMPLE_ADVICE

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the arguments with ``change`` applied to every tensor."""
        args, kwargs = pytree.tree_map(
            lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, (self.args, self.kwargs)
        )
        return self._replace(args=args, kwargs=kwargs)

    def resized(self, *size: int) -> Inputs:
        """Return the arguments with each tensor of the picture's (frames,) height and width at another size, empty."""
        before = self.picture.shape[-len(size) :]

        def change(tensor: Tensor) -> Tensor:
            if tensor.dim() < len(size) or tensor.shape[-len(size) :] != before:
                return tensor
            return tensor.new_empty((*tensor.shape[: -len(size)], *size))

        return self.mapped(change)

    def described(self) -> str:
        """List the shapes of the tensors."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))


def inputs_for(model: nn.Module, example_input: Any = None, example_kwargs: Mapping[str, Any] | None = None) -> Inputs:
    """Return the arguments for a dry run.

    Args:
        model: the model.
        example_input: a tuple of positional arguments, or one argument of any kind: a tensor, a list of pictures, a
            batch dict; None for what the model declares.
        example_kwargs: keyword arguments.

    Raises:
        NoStagesError: there are no examples, and the model does not declare its input.
        TypeError: ``example_kwargs`` is not a mapping with names as keys.
    """
    if example_kwargs is not None and not (
        isinstance(example_kwargs, Mapping) and all(isinstance(name, str) for name in example_kwargs)
    ):
        raise TypeError(f"example_kwargs must be a mapping from names to values, got {example_kwargs!r}")
    kwargs = dict(example_kwargs or {})
    if isinstance(example_input, tuple):
        return Inputs(example_input, kwargs)
    if example_input is not None:
        plain = dict(example_input) if isinstance(example_input, Mapping) else example_input
        return Inputs((plain,), kwargs)
    if kwargs:
        return Inputs((), kwargs)
    size = declared_size(model)
    if size is None:
        raise NoStagesError(
            f"{type(model).__name__} does not declare its input; pass example_input, a tensor such as "
            "torch.empty(1, 3, 224, 224)"
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    all_meta = all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    device = parameter.device if all_meta or not parameter.is_meta else torch.device("cpu")
    return Inputs((torch.empty(1, *size, dtype=parameter.dtype, device=device),), {})


def inputs_of_batch(model: nn.Module, batch: Any, key: str | int | None = None) -> list[Inputs]:
    """Return the possible ways to call a model on a loader's batch, the likeliest first.

    Args:
        model: the model.
        batch: pictures, also as a list of (C, H, W); a tuple or list that begins with them; or a dict. A dict gives
            the keywords if the model takes all of its keys as keywords, else it is the one argument or holds the
            only picture.
        key: index or key of the picture in the batch, if it cannot be recognised.

    Raises:
        TypeError: the batch holds no picture.
        KeyError: the batch does not have the entry ``key``.
    """
    if key is not None:
        if not isinstance(batch, (Mapping, tuple, list)) or (isinstance(batch, Mapping) and key not in batch):
            raise KeyError(f"the batch, a {type(batch).__name__}, has no entry key={key!r}")
        return [Inputs((batch[key],), {}, True)]  # type: ignore[index]
    if isinstance(batch, Tensor):
        return [Inputs((batch,), {}, True)]
    if isinstance(batch, (tuple, list)) and batch:
        if all(isinstance(item, Tensor) and item.dim() == 3 and item.is_floating_point() for item in batch):
            # A detector takes the list of pictures; for any other model, the first tensor is the picture.
            return [Inputs((list(batch),), {}, True), Inputs((batch[0],), {}, True)]
        return [Inputs((batch[0],), {}, True)] if isinstance(batch[0], Tensor) else inputs_of_batch(model, batch[0])
    if not isinstance(batch, Mapping):
        raise TypeError(f"batches must be tensors, tuples, lists or dicts, got a {type(batch).__name__}; pass key=")
    plain, names = dict(batch), inspect.signature(model.forward).parameters
    pictures = [value for value in plain.values() if isinstance(value, Tensor) and value.dim() in (4, 5)]
    pictures = [value for value in pictures if value.is_floating_point()]
    ways = [Inputs((), plain, True)] if plain.keys() <= names.keys() else []
    ways.append(Inputs((plain,), {}, True))
    return [*ways, Inputs((pictures[0],), {}, True)] if len(pictures) == 1 else ways


def declared_size(model: nn.Module) -> tuple[int, ...] | None:
    """Return the channels, (frames,) rows and columns of the input that a model declares; None if it declares none."""
    if family_of(model).library == "torchvision":
        return _of_torchvision(model, family_of(model).video)
    for module in model.modules():
        size = _own_size(module)
        if size is not None:
            return size
    return None


def _own_size(module: nn.Module) -> tuple[int, ...] | None:
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    if size is not None:
        height, width = _image_size(module) or size[-2:]
        return _picture_channels(module) or size[0], height, width
    family = family_of(module)
    if family.library == "transformers":
        return _of_transformers(module)
    if family.library == "ultralytics" and isinstance(getattr(module, "yaml", None), dict):
        return int(module.yaml.get("channels", 3)), 256, 256  # type: ignore[union-attr, operator]
    if family.library == "segmentation_models_pytorch" and hasattr(module, "out_channels"):
        return _picture_channels(module) or 3, 256, 256
    if family.library in ("open_clip", "dinov2"):
        square = getattr(module, "image_size", None) or _image_size(module)
        return None if square is None else (3, *_pair(square))
    return None


def _of_torchvision(module: nn.Module, video: bool) -> tuple[int, ...] | None:
    kind = origin(module).__name__
    if video:  # the sizes that torchvision's weights were trained on
        frames = {"VideoResNet": (16, 112, 112), "MViT": (16, 224, 224), "SwinTransformer3d": (16, 224, 224)}
        return 3, *frames.get(kind, (16, 224, 224))
    fixed = getattr(getattr(module, "transform", None), "fixed_size", None)  # of detectors; the width comes first
    if fixed is not None:
        return 3, int(fixed[1]), int(fixed[0])
    side = 299 if kind == "Inception3" else int(getattr(module, "image_size", 224))
    return 3, side, side


def _of_transformers(module: nn.Module) -> tuple[int, ...] | None:
    config = config_of(module)
    if config is None or not any(hasattr(config, name) for name in ("num_channels", "image_size", "patch_size")):
        return None
    return int(getattr(config, "num_channels", 3)), *_pair(getattr(config, "image_size", None) or 224)


def _image_size(module: nn.Module) -> tuple[int, int] | None:
    """Return the size that the patch embedding was built for, which may differ from that in the configuration."""
    for owner in (module, module._modules.get("model")):  # timm's features_only models have the whole model inside
        for patches in ("patch_embed", "stem"):
            size = getattr(getattr(owner, patches, None), "img_size", None)
            if isinstance(size, (tuple, list)) and len(size) == 2:
                return int(size[0]), int(size[1])
    return None


def _picture_channels(module: nn.Module) -> int | None:
    first = next((child for child in module.modules() if isinstance(child, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels <= 4 else None


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height), int(width)
