"""Injection: other operations on models still work on an injected model."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.func import functional_call

from sia_layers.injection import eject_sia, inject_sia, sia_modules, sia_parameters


def small(name: str = "resnet10t", **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **({"img_size": 32, "depth": 4} if "vit" in name else {}))
    return inject_sia(model, example_input=torch.empty(1, 3, 32, 32), **{"identity_init": False, **kwargs})


X = (2, 3, 32, 32)
NAMES = ["resnet10t", "vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> object:
    yield
    torch.compiler.reset()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    model, x = small(name).eval(), torch.rand(X)
    with torch.no_grad():
        torch.save((model, x, model(x)), tmp_path / "model.pt")
    script = f"""
        import torch
        model, x, expected = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        with torch.no_grad():
            assert torch.allclose(model(x), expected, atol=1e-6)
        from sia_layers.injection import eject_sia, sia_modules
        assert len(sia_modules(model)) == 3
        eject_sia(model)
        assert not any(m._forward_hooks for m in model.modules())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_sia_checkpoints_load_strictly(tmp_path: Path) -> None:
    model = small()
    torch.save(model.state_dict(), tmp_path / "sia.pt")
    other = small(kernel_size=5)
    state = torch.load(tmp_path / "sia.pt", weights_only=True)
    with pytest.warns(UserWarning, match="kernel_size"):
        other.load_state_dict(state, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_deepcopy_and_model_ema() -> None:
    from timm.utils import ModelEmaV3

    model, x = small(), torch.rand(X)
    ema = ModelEmaV3(model, decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(x).square().sum().backward()
    optimizer.step()
    before = [p.clone() for p in sia_parameters(ema.module)]
    ema.update(model)
    assert any(not torch.equal(a, b) for a, b in zip(before, sia_parameters(ema.module), strict=True))
    assert torch.isfinite(ema.module.eval()(x)).all()
    assert torch.equal(copy.deepcopy(model).eval()(x), model.eval()(x))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_models(name: str, dtype: torch.dtype) -> None:
    model, x = small(name).to(dtype), torch.rand(X, dtype=dtype)
    output = model(x)
    assert output.dtype == dtype and torch.isfinite(output).all()
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.dtype == dtype for p in sia_parameters(model))


def test_autocast() -> None:
    model, x = small(), torch.rand(X)
    with torch.autocast("cpu", torch.bfloat16):
        model(x).float().square().sum().backward()
    assert all(p.grad is not None for p in sia_parameters(model))


def test_functional_call() -> None:
    model, x = small().eval(), torch.rand(X)
    parameters = {name: p * 0.5 if "sia" in name.split(".") else p for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        changed = functional_call(model, (parameters, buffers), (x,))
        for parameter in sia_parameters(model):
            parameter.mul_(0.5)
        assert torch.allclose(changed, model(x), atol=1e-6)


def test_convert_sync_batchnorm() -> None:
    model, x = small("densenet121").eval(), torch.rand(X)
    with torch.no_grad():
        expected = model(x)
        converted = timm.layers.convert_sync_batchnorm(model)
        assert len(sia_modules(converted)) == 3
        calls: list[str] = []
        for name, module in sia_modules(converted).items():
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
        assert torch.allclose(converted.eval()(x), expected, atol=1e-5)
        assert len(calls) == 3


def test_quantize_dynamic() -> None:
    model, x = small("vit_tiny_patch16_224").eval(), torch.rand(X)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    calls: list[str] = []
    for name, module in sia_modules(quantized).items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        assert torch.isfinite(quantized(x)).all()
    assert len(calls) == 3


def test_fx() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    inject_sia(model, example_input=torch.empty(1, 3, 32, 32), identity_init=False)
    graph, x = torch.fx.symbolic_trace(model.eval()), torch.rand(X)
    assert sum(node.op == "call_module" and node.target.endswith(".sia") for node in graph.graph.nodes) == 3
    with torch.no_grad():
        assert torch.allclose(graph(x), model(x), atol=1e-6)


@pytest.mark.slow  # by default, test_injection_handing compiles a whole model
@pytest.mark.parametrize("name", NAMES)
def test_compile_after_injection(name: str) -> None:
    model, x = small(name), torch.rand(X)
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-5)
    compiled(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in sia_parameters(model))


def test_compile_with_checkpointing() -> None:
    model, x, y = small().eval(), torch.rand(X), 4 * torch.rand(X)
    found = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        run = torch.compile(model, backend="aot_eager") if checkpointing else model
        model.zero_grad()
        (run(x).square().sum() + run(y).sin().sum()).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(torch.allclose(found[1][name], grad, atol=1e-4) for name, grad in found[0].items())


def test_the_compiler_is_left_alone_if_it_has_compiled_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch.compiler, "reset", lambda: pytest.fail("reset"))
    eject_sia(inject_sia(timm.create_model("test_resnet")))


def test_compile_before_injection() -> None:
    plain, x = timm.create_model("resnet10t", num_classes=4).eval(), torch.rand(X)
    compiled = torch.compile(plain, backend="aot_eager")
    with torch.no_grad():
        before = compiled(x)
        assert inject_sia(compiled, example_input=x, identity_init=False) is compiled
        after = compiled(x)
        assert not torch.allclose(before, after) and torch.allclose(after, plain(x), atol=1e-5)
        eject_sia(compiled)
        assert torch.allclose(compiled(x), before, atol=1e-6)


@pytest.mark.slow  # by default, test_export_models exports a model
@pytest.mark.parametrize("name", NAMES)
def test_export(name: str) -> None:
    model, x = small(name).eval(), torch.rand(X)
    program = torch.export.export(model, (x,))
    assert not any("sia_layers" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


@pytest.mark.slow  # by default, the code of docs/guide/export.md does the same
def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = small().eval(), torch.rand(X)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-4)


@pytest.mark.parametrize("mode", [True, False])
def test_modes(mode: bool) -> None:
    model = small().train(mode)
    assert all(module.training is mode for module in sia_modules(model).values())
    model(torch.rand(X)).sum().backward()


def test_transfer_lowers_the_loss_and_the_gain_leaves_zero() -> None:
    model = small(identity_init=True)
    x, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    learnt = [*sia_parameters(model), *model.get_classifier().parameters()]
    for parameter in learnt:
        parameter.requires_grad_()
    optimizer, losses = torch.optim.Adam(learnt, 0.01), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(module.gain is not None and module.gain.item() != 0 for module in sia_modules(model).values())


PROCESSES = """
    import sys, torch, torch.distributed as dist
    sys.path.insert(0, {tests!r})
    from test_injection_ecosystem import small
    from sia_layers.injection import sia_modules, sia_parameters
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method="file://{store}", rank=rank, world_size=2)
    torch.manual_seed(3)
    x = torch.rand(4, 3, 32, 32)
    model, whole = small().eval(), small().eval()  # batch norms by their running statistics: each half as the whole
    whole(x).square().sum().backward()
    expected = {{name: p.grad for name, p in whole.named_parameters()}}
{body}
    dist.barrier()
    dist.destroy_process_group()
"""
DDP = """
    model = torch.nn.parallel.DistributedDataParallel(model)
    (2 * model(x[2 * rank : 2 * rank + 2]).square().sum()).backward()
    for name, p in model.module.named_parameters():
        assert torch.allclose(p.grad, expected[name], atol=1e-4, rtol=1e-3), name
"""
FSDP = """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    mesh = init_device_mesh("cpu", (2,))
    for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    (2 * model(x[2 * rank : 2 * rank + 2]).square().sum()).backward()
    assert len(sia_modules(model)) == 3
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad.full_tensor(), expected[name], atol=1e-4, rtol=1e-3), name
"""


@pytest.mark.parametrize("body", [FSDP, pytest.param(DDP, marks=pytest.mark.slow)], ids=["fsdp2", "ddp"])
def test_two_processes_give_the_gradients_of_one(body: str, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    tests = str(Path(__file__).parent)
    script = textwrap.dedent(PROCESSES.format(tests=tests, store=tmp_path / "store", body=body))
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
