"""accelerate and Lightning: training, regional compilation, offloading, checkpoints; and torch's own sharding."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_checks import difference
from torch import Tensor, nn

from sia_layers.injection import UnsupportedModelError, eject_sia, inject_sia, sia_config, sia_modules, sia_parameters

pytestmark = pytest.mark.sampled(1)
timm = pytest.importorskip("timm", reason="needs timm")
NAMES = ["resnet10t", "vit_tiny_patch16_224"]


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    small = {"img_size": 64, "depth": 4, "embed_dim": 48, "num_heads": 4} if "vit" in name else {}
    model: nn.Module = timm.create_model(name, num_classes=2, **small)
    return model.eval()


def injected(name: str) -> nn.Module:
    return inject_sia(made(name), identity_init=False, gain=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_trains_and_keeps_the_state(name: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, x = injected(name), torch.rand(2, 3, 64, 64)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(sia_parameters(model), 0.1))
    accelerator.backward(model(x).sum())
    optimizer.step()
    accelerator.save_state(str(tmp_path))
    found = model(x)
    with torch.no_grad():
        for parameter in sia_parameters(model):
            parameter.zero_()
    accelerator.load_state(str(tmp_path))
    assert difference(model(x), found) == 0
    assert len(sia_modules(accelerator.unwrap_model(model))) == 3


def test_accelerate_compiles_by_regions() -> None:
    compile_regions = pytest.importorskip("accelerate.utils", reason="needs accelerate").compile_regions
    model, x = injected("vit_tiny_patch16_224"), torch.rand(2, 3, 64, 64)
    expected = model(x)
    compiled = compile_regions(model, backend="eager")
    assert difference(compiled(x), expected) < 1e-5 and len(sia_modules(compiled)) == 3
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload", "dispatch_model"])
def test_accelerate_offloads(name: str, way: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, x = injected(name), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
    if way == "cpu_offload":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif way == "disk_offload":
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    else:
        accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    with torch.no_grad():
        assert difference(model(x), expected) < 1e-6
    eject_sia(model)
    bare = made(name)
    with torch.no_grad():
        assert difference(model(x), bare(x)) < 1e-6


def test_an_offloaded_model_is_refused_with_advice() -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model = accelerate.cpu_offload(made("resnet10t"), execution_device="cpu")
    with pytest.raises(UnsupportedModelError, match="inject before offloading"):
        inject_sia(model)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert len(sia_modules(inject_sia(model))) == 3
    assert torch.isfinite(model(torch.rand(1, 3, 64, 64))).all()


def test_lightning_fits_saves_and_loads_strictly(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="needs lightning")

    class Detector(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, config: dict[str, Any] | None = None) -> None:
            super().__init__()
            self.model = inject_sia(made("resnet10t"), **(config or {"kernel_size": 5}))
            self.save_hyperparameters({"config": sia_config(self.model)})

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.model(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(sia_parameters(self.model), 0.1)

    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1]))
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    detector = Detector()
    trainer.fit(detector, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    gains = [site.gain.item() for site in sia_modules(detector).values()]
    assert all(gains)
    again = Detector.load_from_checkpoint(tmp_path / "last.ckpt", strict=True, weights_only=True)
    assert sia_config(again) == sia_config(detector) and sia_config(again)["kernel_size"] == 5
    x = torch.rand(1, 3, 64, 64)
    assert difference(again.eval().model(x), detector.eval().model(x)) == 0


SHARDED = """
    import torch, timm, torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from sia_layers.injection import inject_sia, sia_modules, sia_parameters
    dist.init_process_group("gloo", init_method="file://{store}", rank=0, world_size=1)
    torch.manual_seed(0)
    model, x = inject_sia(timm.create_model("resnet10t", num_classes=2)), torch.rand(2, 3, 64, 64)
    before = [parameter.detach().clone() for parameter in sia_parameters(model)]
    {wrap}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).square().sum().backward()
    optimizer.step()
    {read}
    assert all(gain != 0 for gain in gains), gains
    dist.destroy_process_group()
"""
WAYS = {
    "fsdp2": (
        'fully_shard(model, mesh=init_device_mesh("cpu", (1,)))',
        "gains = [site.gain.full_tensor().item() for site in sia_modules(model).values()]",
    ),
    "fsdp1": (
        'model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))',
        "gains = [value.item() for name, value in model.state_dict().items() if name.endswith('sia.gain')]",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_default_injection_is_sharded(way: str, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    wrap, read = WAYS[way]
    script = textwrap.dedent(SHARDED).format(store=tmp_path / "store", wrap=wrap, read=read)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
