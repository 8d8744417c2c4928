"""Hugging Face transformers: its vision backbones, loading and saving, checkpointing, and its Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_checks import channels, check, difference, kinds, tensors
from torch import Tensor, nn

from sia_layers import SIAttention
from sia_layers.injection import (
    LayoutError,
    eject_sia,
    find_sites,
    inject_sia,
    load_sia_state_dict,
    reset_sia_parameters,
    sia_config,
    sia_modules,
    sia_parameters,
    sia_state_dict,
)

pytestmark = pytest.mark.sampled(3)
T = pytest.importorskip("transformers", reason="needs transformers")

WIDE = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
VIT = {**WIDE, "intermediate_size": 96}
SWIN = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 2, 2], "window_size": 2, "image_size": 64,
        "patch_size": 4}  # fmt: skip
LEVELS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
PYRAMID = {**LEVELS, "num_attention_heads": [1, 2, 2, 2]}
RESNET = {"embedding_size": 8, **LEVELS}
MOBILE_VIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 24, 32, 32], "image_size": 64,
              "num_attention_heads": 2, "initializer_range": 0.3}  # fmt: skip
SAM = {"hidden_size": 24, "output_channels": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64,
       "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 24}  # fmt: skip
DETR = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "d_model": 16,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip

# By name of the model: its configuration, and the layout and channels of its sites.
FAMILIES: dict[str, tuple[dict[str, Any], str, list[int]]] = {
    "BeitModel": (VIT, "NLC", [48, 48, 48]),
    "CLIPVisionModel": (VIT, "NLC", [48, 48, 48]),
    "ConvNextV2Model": (LEVELS, "NCHW", [8, 16, 24]),
    "DINOv3ViTModel": ({**VIT, "num_register_tokens": 4}, "NLC", [48, 48, 48]),
    "DeiTModel": (VIT, "NLC", [48, 48, 48]),
    "Dinov2Model": (WIDE, "NLC", [48, 48, 48]),
    "Dinov2WithRegistersModel": (WIDE, "NLC", [48, 48, 48]),
    "HieraModel": (
        {"embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 2]},
        "NLC",
        [8, 16, 32],
    ),
    "MobileViTModel": (MOBILE_VIT, "NCHW", [16, 24, 24]),
    "PvtV2Model": ({**PYRAMID, "image_size": 64}, "NLC", [8, 16, 24]),
    "ResNetForImageClassification": (RESNET, "NCHW", [8, 16, 24]),
    "SamVisionModel": (SAM, "NHWC", [24, 24, 24]),
    "SegformerForSemanticSegmentation": ({**PYRAMID, "decoder_hidden_size": 16}, "NLC", [8, 16, 24]),
    "SiglipVisionModel": (VIT, "NLC", [48, 48, 48]),
    "SwinModel": (SWIN, "NLC", [12, 24, 48]),
    "ViTForImageClassification": (VIT, "NLC", [48, 48, 48]),
}
PREFIXES = {"CLIPVisionModel": 1, "DINOv3ViTModel": 5, "DeiTModel": 2, "Dinov2WithRegistersModel": 5, "SwinModel": 0,
            "SiglipVisionModel": 0, "ViTForImageClassification": 1}  # fmt: skip


def made(name: str, config: dict[str, Any]) -> nn.Module:
    kind = getattr(T, name)
    torch.manual_seed(0)
    model: nn.Module = kind(kind.config_class(**config)).eval()
    return model


def pictures() -> Tensor:
    return torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_recognised(name: str) -> None:
    config, kind, expected = FAMILIES[name]
    model, x = made(name, config), pictures()
    sites = check(model, lambda: model(pixel_values=x))
    assert channels(sites) == expected and kinds(sites) == {kind}
    if name in PREFIXES:
        assert {site.layout.prefixes for site in sites.values()} == {(PREFIXES[name],)}


@pytest.mark.parametrize("backbone", ["resnet", "dinov2"])
def test_auto_backbone(backbone: str) -> None:
    kind, config = {"resnet": (T.ResNetConfig, RESNET), "dinov2": (T.Dinov2Config, WIDE)}[backbone]
    model = T.AutoBackbone.from_config(kind(**config, out_features=["stage2", "stage4"])).eval()
    x = pictures()
    sites = check(model, lambda: model(x).feature_maps)
    assert len(sites) == 3
    if backbone == "resnet":
        assert [site.stage for site in find_sites(model, [8, 16])] == ["encoder.stages.1", "encoder.stages.2"]


def test_the_visual_tower_of_a_text_image_model_is_selected() -> None:
    text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
            "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    model = made("CLIPModel", {"vision_config": VIT, "text_config": text, "projection_dim": 24})
    x, words = pictures(), torch.ones(2, 5, dtype=torch.long)
    sites = check(model, lambda: model(pixel_values=x, input_ids=words).logits_per_image)
    assert all(name.startswith("vision_model.") for name in sites) and len(sites) == 3


def test_a_detectors_backbone_is_selected_rather_than_its_query_encoder() -> None:
    backbone = T.ResNetConfig(**RESNET, out_features=["stage4"])
    model, x = made("DetrForObjectDetection", {**DETR, "backbone_config": backbone}), pictures()
    sites = check(model, lambda: model(pixel_values=x).logits)
    assert all(".backbone." in name for name in sites) and channels(sites) == [8, 16, 24]


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("YolosForObjectDetection", {**VIT, "image_size": [64, 64], "num_detection_tokens": 10}, "after the patches"),
        ("ViTMAEModel", {**VIT, "mask_ratio": 0.0}, "shuffles"),
    ],
)
def test_tokens_in_an_order_that_is_not_the_grids_are_refused(name: str, config: dict[str, Any], reason: str) -> None:
    model = made(name, config)
    with pytest.raises(LayoutError, match=reason):
        inject_sia(model)
    assert not sia_modules(model)


def test_the_grid_is_the_pictures_own_where_positions_are_interpolated() -> None:
    model = inject_sia(made("ViTModel", VIT), identity_init=False, aggregate=False).eval()
    seen: list[tuple[int, ...]] = []
    model.layers[0].sia.capture = lambda info: seen.append(tuple(info.shape))
    model(torch.rand(1, 3, 32, 128), interpolate_pos_encoding=True)
    assert seen == [(1, 48, 2, 8)]


# Loading and saving


class Net(T.PreTrainedModel):  # type: ignore[misc, name-defined]
    """A custom detector that injects in its constructor."""

    config_class = T.ResNetConfig

    def __init__(self, config: Any, sia: bool = True) -> None:
        super().__init__(config)
        self.resnet = T.ResNetModel(config)
        self.head = nn.Linear(config.hidden_sizes[-1], 2)
        if sia:
            inject_sia(self.resnet)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.resnet(pixel_values).pooler_output.flatten(1))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class CuredNet(Net):
    """The same detector, whose loader initialises what a checkpoint lacks."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> CuredNet:
        model, loading_info = super().from_pretrained(*args, **kwargs, output_loading_info=True)
        reset_sia_parameters(model, missing=loading_info["missing_keys"])
        return model  # type: ignore[no-any-return]


class Backbone(T.ViTModel):  # type: ignore[misc, name-defined]
    """A backbone that injects into itself."""

    def __init__(self, config: Any, sia: bool = True) -> None:
        super().__init__(config)
        if sia:
            inject_sia(self)


@pytest.fixture
def dirty() -> None:
    """Fill and free memory with non-zero values, so that uninitialised parameters are not 0."""
    junk = [torch.full((number,), 7.7) for number in range(1, 3000)]
    del junk


def gains(model: nn.Module) -> list[float]:
    return [site.gain.item() for site in sia_modules(model).values() if site.gain is not None]


def configured(kind: type) -> Any:
    return T.ViTConfig(**VIT) if kind is Backbone else T.ResNetConfig(**RESNET)


@pytest.mark.parametrize("kind", [Net, CuredNet, Backbone])
def test_a_checkpoint_without_sia_starts_from_the_identity(kind: Any, tmp_path: Path, dirty: None) -> None:
    bare, x = kind(configured(kind), sia=False).eval(), pictures()
    bare.save_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path)
    assert gains(model) == [0.0, 0.0, 0.0]
    assert all(torch.isfinite(parameter).all() and parameter.abs().max() < 10 for parameter in sia_parameters(model))
    assert difference(model.eval()(x), bare(x)) == 0


@pytest.mark.parametrize(("kind", "dtype"), [(Net, torch.bfloat16), (CuredNet, None), (Backbone, None)])
def test_a_round_trip_keeps_weights_and_configuration(kind: Any, dtype: Any, tmp_path: Path, dirty: None) -> None:
    model = kind(configured(kind)).eval()
    with torch.no_grad():
        for parameter in sia_parameters(model):
            nn.init.normal_(parameter)
        for site in list(sia_modules(model).values())[1:]:
            site.aggregation.projections[0][1].running_mean.fill_(3.0)
    model.save_pretrained(tmp_path)
    info = {"output_loading_info": True} if kind is not CuredNet else {}
    loaded = kind.from_pretrained(tmp_path, dtype=dtype, **info)
    if info:
        loaded, loading_info = loaded
        assert not loading_info["missing_keys"] and not loading_info["unexpected_keys"]
    assert sia_config(loaded) == sia_config(model)
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        wanted = ours.to(dtype) if dtype is not None and ours.is_floating_point() else ours
        assert torch.equal(wanted, theirs), name
    assert all(torch.isfinite(tensor).all() for tensor in tensors(loaded(pictures().to(loaded.dtype))))


def test_load_then_inject_and_keep_the_configuration_in_the_models_own(tmp_path: Path) -> None:
    plain = made("ViTForImageClassification", VIT)
    plain.save_pretrained(tmp_path / "hub")
    model = inject_sia(T.AutoModelForImageClassification.from_pretrained(tmp_path / "hub"), kernel_size=5)
    x = pictures()
    assert difference(model.eval()(x), plain(x)) == 0
    with torch.no_grad():
        for parameter in sia_parameters(model):
            parameter.add_(0.1)
    model.config.sia = sia_config(model)
    model.save_pretrained(tmp_path / "tuned")
    # Not read from model.safetensors, where transformers stores some models under the names of earlier versions.
    torch.save(sia_state_dict(model), tmp_path / "tuned" / "sia.pt")
    again = T.AutoModelForImageClassification.from_pretrained(tmp_path / "tuned")
    inject_sia(again, **again.config.sia)
    load_sia_state_dict(again, torch.load(tmp_path / "tuned" / "sia.pt", weights_only=True))
    assert difference(again.eval()(x), model(x)) == 0
    assert sia_state_dict(again).keys() == sia_state_dict(model).keys()


# Training


@pytest.mark.parametrize(("name", "config"), [("ViTModel", VIT), ("SwinModel", SWIN)])
def test_gradient_checkpointing_gives_the_same_gradients(name: str, config: dict[str, Any]) -> None:
    model, x = inject_sia(made(name, config), identity_init=False, gain=0.5).train(), pictures()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()  # the default, without use_reentrant=True
        model.zero_grad()
        model(pixel_values=x)[0].square().sum().backward()
        found.append({key: parameter.grad for key, parameter in model.named_parameters()})
    ours, theirs = found
    for key, grad in ours.items():
        assert (grad is None) == (theirs[key] is None), key
        assert grad is None or torch.equal(grad, theirs[key]), key


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        torch.manual_seed(index)
        return {"pixel_values": torch.rand(3, 64, 64), "labels": index % 2}


class FlatTrainer(T.Trainer):  # type: ignore[misc, name-defined]
    """A Trainer that decays only weights, as timm does, and no gains."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        flat = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in flat]


@pytest.mark.parametrize("trainer", [T.Trainer, FlatTrainer])
def test_trainer(trainer: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    model = CuredNet(T.ResNetConfig(**RESNET))
    arguments = T.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=2, save_steps=2, learning_rate=0.1,
        weight_decay=0.5, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    training = trainer(model=model, args=arguments, train_dataset=Pictures())
    decayed = {name for name in training.get_decay_parameter_names(model) if "sia" in name.split(".")}
    assert any(name.endswith("fc1.weight") for name in decayed)
    # transformers itself decides by name, and decays every parameter that is not named as a bias or a norm.
    assert any(name.endswith("gain") for name in decayed) is (trainer is T.Trainer)
    training.train()
    assert all(gain != 0 for gain in gains(model))
    again = CuredNet.from_pretrained(tmp_path / "checkpoint-2")
    assert gains(again) == gains(model) and sia_config(again) == sia_config(model)
    eject_sia(model)
    assert isinstance(model(pictures())["logits"], Tensor)


def test_timm_decays_no_gain() -> None:
    optim = pytest.importorskip("timm.optim", reason="needs timm")
    timm = pytest.importorskip("timm")
    model = inject_sia(timm.create_model("resnet10t"))
    kept, decayed = optim.param_groups_weight_decay(model, 0.1)
    assert kept["weight_decay"] == 0 and decayed["weight_decay"] == 0.1
    for site in sia_modules(model).values():
        assert isinstance(site, SIAttention) and any(site.gain is parameter for parameter in kept["params"])
        assert any(site.fc1.weight is parameter for parameter in decayed["params"])
