"""Models of the commands: create one by name, load a checkpoint, inject SIA, and prepare photographs."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_layers.cli.checkpoint import fitting, inject_as_saved, load, read_checkpoints
from sia_layers.cli.common import Parser, Refusal, named_information, refusing
from sia_layers.injection import InjectionError, inject_sia, sia_modules
from sia_layers.injection.config import config_in
from sia_layers.injection.errors import DryRunError
from sia_layers.injection.inputs import EXAMPLE_ADVICE, inputs_for
from sia_layers.kernels.options import Options

if TYPE_CHECKING:
    from sia_layers.photo import Photo

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
INSTALL_ADVICE: Final = 'pip install "sia-layers[timm]" or "sia-layers[vision]"'


@dataclass(frozen=True)
class Backbone:
    """A model in evaluation mode, and how to prepare its input.

    Attributes:
        name: of the library and the model.
        weights: the source of the weights, in words.
        model: the model.
        size: channels, rows and columns of the input.
        mean: mean of each channel, to subtract.
        std: standard deviation of each channel, to divide by.
        configured: whether the checkpoint holds the configuration of its SIA.
    """

    name: str
    weights: str
    model: nn.Module
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    configured: bool = False

    def seen(self, photo: Photo) -> Photo:
        """Crop the middle of a photograph to the aspect ratio of the model's input, and scale it to that size."""
        channels, rows, columns = self.size
        height = min(photo.height, round(photo.width * rows / columns)) or 1
        width = min(photo.width, round(photo.height * columns / rows)) or 1
        top, left = (photo.height - height) // 2, (photo.width - width) // 2
        middle = photo.pixels[..., top : top + height, left : left + width]
        pixels = F.interpolate(middle, (rows, columns), mode="bicubic", antialias=True).clamp(0, 1)
        if pixels.shape[1] != channels:  # a grey photo for a colour model, or the reverse
            pixels = pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        return replace(photo, pixels=pixels.contiguous())

    def normalized(self, photo: Photo) -> Tensor:
        """Normalise a photograph as in training: (1, C, H, W), minus the mean, divided by the standard deviation."""
        pixels: Tensor = photo.pixels
        return (pixels - pixels.new_tensor(self.mean)[:, None, None]) / pixels.new_tensor(self.std)[:, None, None]


def add(command: Parser, required: bool) -> None:
    """Add the options that name a model."""
    option = command.add_argument
    option("--model", required=required, metavar="NAME", help="a model of timm or torchvision")
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=Path, metavar="FILE",
        help="its weights: a .safetensors file, or one written by torch.save; no code in it is run")  # fmt: skip
    weights.add_argument("--pretrained", action="store_true", help="its library's weights, downloaded if necessary")
    option("--image-size", type=int, metavar="N", help="rows and columns of the model's input (what it declares)")


def refuse_options_without_model(given: argparse.Namespace, *more: str) -> None:
    """Refuse options that need a model.

    Raises:
        Refusal: one was given without a model.
    """
    for name in ("checkpoint", "pretrained", "image_size", *more):
        if getattr(given, name):
            raise Refusal(f"--{name.replace('_', '-')} needs a model; name one with --model")


def stages(requests: list[str] | None) -> list[str | int] | None:
    """Convert requests for stages as the library takes them: numbers are reductions."""
    return None if requests is None else [int(request) if request.isdecimal() else request for request in requests]


def make(given: argparse.Namespace) -> Backbone:
    """Create the named model with its weights; without any, initialise it with the same random weights each time."""
    library, name = _found(given.model)
    saved = None if given.checkpoint is None else read_checkpoints(given.checkpoint)
    model, configured = _created(library, name, given.pretrained, {}), False
    weights = "pretrained" if given.pretrained else "random weights"
    if saved is not None:
        checkpoint = fitting(saved, model)
        outputs = _outputs_of(model, checkpoint.state)
        if outputs is not None:
            model = _created(library, name, False, {"num_classes": outputs})
        inject_as_saved(model, checkpoint)
        load(model, checkpoint)
        weights, configured = str(checkpoint), config_in(checkpoint.state) is not None
    with refusing(InjectionError):
        channels, rows, columns = (int(side) for side in inputs_for(model).picture.shape[1:])
    if given.image_size is not None:
        if given.image_size < 1:
            raise Refusal(f"image-size must be 1 or more, got {given.image_size}")
        rows = columns = given.image_size
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (tuple(config.get(key) or default) for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    mean, std = (
        values if len(values) == channels else (sum(values) / len(values),) * channels for values in (mean, std)
    )
    size = (channels, rows, columns)
    return Backbone(f"{library} {name}", weights, model.eval(), size, mean, std, configured)


def inject(backbone: Backbone, given: argparse.Namespace, options: Options) -> None:
    """Inject SIA at the requested stages, unless the checkpoint has SIA: then its sites and options are kept.

    Raises:
        Refusal: SIA cannot be injected, or the command line names what the checkpoint determines.
    """
    if sia_modules(backbone.model):
        named = [name for name in ("stages", "domain") if getattr(given, name) is not None]
        named += named_information(given) if backbone.configured else []  # older checkpoints do not hold the options
        if named:
            listed = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise Refusal(f"the checkpoint has SIA with sites and options of its own; leave {listed} out")
        for module in sia_modules(backbone.model).values():
            module.backend = given.backend
            if not backbone.configured:
                module.options = options
        return
    with refusing(InjectionError, ValueError, TypeError, RuntimeError):
        example = torch.empty(1, *backbone.size)
        chosen = {**options._asdict(), "backend": given.backend, "example_input": example}
        try:
            # Without the untrained aggregation, the maps are the self-information of the model's own features.
            inject_sia(
                backbone.model, stages(given.stages), aggregate=False, domain=given.domain or "spatial", **chosen
            )
        except DryRunError as error:
            raise Refusal(str(error).replace(EXAMPLE_ADVICE, "choose another --image-size")) from error


def _found(name: str) -> tuple[str, str]:
    """Return the library that has a model of that name, preferably timm, and the name there."""
    known: list[str] = []
    for library in ("timm", "torchvision"):
        if importlib.util.find_spec(library) is None:
            continue
        asked = name.removeprefix(f"{library}/")
        names = _names(library)
        if asked.partition(".")[0] in names and asked.count("/") == 0:
            return library, asked
        known += names
    if not known:
        raise Refusal(f"neither timm nor torchvision is installed; {INSTALL_ADVICE}")
    near = difflib.get_close_matches(name, sorted(set(known)), n=3)
    raise Refusal(f"no model is called {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _created(library: str, name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    create: Callable[..., nn.Module]
    with refusing(Exception), torch.random.fork_rng():
        torch.manual_seed(0)
        if library == "timm":
            import timm

            return timm.create_model(name, pretrained=pretrained, **arguments)
        import torchvision

        create = torchvision.models.get_model
        if not pretrained and name in ("googlenet", "inception_v3"):
            arguments = {**arguments, "init_weights": True}
        return create(name, weights="DEFAULT" if pretrained else None, **arguments)


def _outputs_of(model: nn.Module, state: dict[str, Tensor]) -> int | None:
    """Return the number of classes of a checkpoint; None if it is the model's default or unknown."""
    layers = [(key, module) for key, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not layers:
        return None
    key, head = layers[-1]
    saved = state.get(f"{key}.weight")
    if saved is None or saved.shape == head.weight.shape or saved.shape[1:] != head.weight.shape[1:]:
        return None
    return int(saved.shape[0])
