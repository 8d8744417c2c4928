"""Features of the Triton backend alone: tiles, rounds of reduction, a two-axis grid, wide offsets, a lazy import.

The tests of all backends check that it agrees with the reference and keeps the invariants. Here its tiles are so small
that maps of a few pixels fill many of them; the same checks run at real sizes on a GPU.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import GPU, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_near
from strategies import Case, Map, cases, laid_out, options, values
from torch import Tensor

from sia_layers.kernels import reference
from sia_layers.kernels import triton as backend
from sia_layers.kernels.options import ESTIMATORS, PADDING_MODES, Options

pytestmark = pytest.mark.usefixtures("poison")

DEVICE = torch.device("cuda" if GPU else "cpu")
FORWARD = 5e-6
BACKWARD = 1e-5  # relative to the largest gradient
EXAMPLES = 100 if GPU else max(2, settings().max_examples // 7)


@pytest.fixture(scope="module", autouse=True)
def _can_serve() -> None:
    serving("triton")


def modules() -> Any:
    """Return the backend's modules that contain its constants."""
    names = ("configs", "dispatch", "launch", "plan")
    return [importlib.import_module(f"sia_layers.kernels.triton.{name}") for name in names]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use tiles of a few pixels, sums in rounds, and a grid so narrow that it wraps."""
    configs, _, launch, _ = modules()
    monkeypatch.setattr(configs, "ELEMENTS", 16)
    monkeypatch.setattr(configs, "FLAT_ELEMENTS", 8)
    monkeypatch.setattr(configs, "COLUMNS", (4, 2))
    monkeypatch.setattr(configs, "LINE_BYTES", 16)
    monkeypatch.setattr(configs, "SPREAD_TILES", 1)
    monkeypatch.setattr(configs, "FINISH_ENTRIES", 2)
    monkeypatch.setattr(configs, "FINISH_BLOCK", (2, 4))
    monkeypatch.setattr(launch, "WIDEST_GRID", 5)


def informed(x: Tensor, grad: Tensor, chosen: Options, run: Any = backend) -> dict[str, Tensor]:
    """Return all results of the functions that use a window, by name."""
    info, scale = run.self_information(x, chosen)
    gated, mean = run.gate_and_mean(x, chosen, True, "mean")
    gradient = run.self_information_backward(grad, x, scale, chosen)
    return {"info": info, "scale": scale, "gated": gated, "mean": mean, "gradient": gradient}


def gated(x: Tensor, grad: Tensor, _: Options, run: Any = backend) -> dict[str, Tensor]:
    """Return all results of the pixel-wise functions, by name, with |grad| as the map of information."""
    info, gain = grad.abs(), torch.tensor(0.3).to(x)
    mean = run.channel_mean(info, "mean")
    channel_gate = mean.to(x.dtype) / 4
    found = {"mean": mean, "mean's gradient": run.channel_mean_backward(mean, info, "mean")}
    found["gate"] = run.gate(x, info, channel_gate, gain, grad)
    gradients = run.gate_backward(grad, x, info, channel_gate, gain, grad, True)
    return found | {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}


Run = Callable[..., dict[str, Tensor]]


def check(run: Run, x: Tensor, chosen: Options) -> None:
    """Compare the functions on x with the reference on a float64 copy of it."""
    grad = torch.randn(x.shape).to(x)
    found, expected = run(x, grad, chosen), run(x.double().cpu(), grad.double().cpu(), chosen, reference)
    for name, result in found.items():
        largest = expected[name].abs().max().item() if expected[name].numel() else 0.0
        unit = BACKWARD if "gradient" in name else FORWARD
        # Results computed from a rounded channel gate differ by its rounding.
        rounding = 0.0 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps * largest
        assert_near(result, expected[name], unit * max(1.0, largest) + rounding)


@pytest.mark.usefixtures("small_tiles")
def test_many_small_tiles() -> None:
    drawn = cases(
        options(kernel_sizes=(1, 3, 5, 9), padding_modes=PADDING_MODES, estimators=("kde",)),
        sides=st.integers(1, 6),
        channels=st.sampled_from((1, 2, 3, 4)),
        samples=st.integers(1, 2),
        contents=("normal", "far", "flat_planes"),
        largest=24,
    )

    @settings(max_examples=EXAMPLES)
    @given(drawn)
    def holds(case: Case) -> None:
        check(informed, case.map.make(DEVICE), case.options)

    holds()


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_form_in_small_tiles(estimator: str, padding_mode: str) -> None:
    chosen = Options(kernel_size=3, estimator=estimator, padding_mode=padding_mode, inter_channels=2)
    layout = "contiguous" if padding_mode in ("exclude", "reflect") else "channels_last"
    check(informed, Map((2, 3, 3, 5), layout=layout).make(DEVICE), chosen)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_in_small_tiles(layout: str, dtype: torch.dtype) -> None:
    check(gated, Map((2, 4, 3, 4), dtype, layout).make(DEVICE), Options())


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("run", [informed, gated])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_wide_offsets_give_the_same_bits(run: Run, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = laid_out(values((1, 4, 3, 5)).float(), layout).to(DEVICE), values((1, 4, 3, 5)).float().to(DEVICE)
    found = run(x, grad, Options())
    monkeypatch.setattr(modules()[3], "_needs_int64", lambda *_: True)
    for name, result in run(x, grad, Options()).items():
        assert torch.equal(result, found[name]), name


@pytest.mark.parametrize(
    ("kernel_size", "content"), [(3, "normal"), (3, "flat"), (3, "infinite"), (3, "nan"), (5, "normal")]
)
def test_masked_and_clamped_pads_agree(kernel_size: int, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, chosen = (1, 2, 3, 5), Options(kernel_size=kernel_size, inter_channels=0)
    x, grad = values(shape).float().to(DEVICE), values(shape, seed=1).float().to(DEVICE)
    if content == "flat":
        x[:, 0] = 1.5  # its scale is 0
    elif content != "normal":
        x[..., 0, -1], x[..., 1, 2] = float("inf" if content == "infinite" else "nan"), -float("inf")
    plan = modules()[3]
    assert plan.window_plan(x).masked("exclude")
    masked = informed(x, grad, chosen)
    monkeypatch.setattr(plan.Plan, "masked", lambda *_: False)
    for name, result in informed(x, grad, chosen).items():
        torch.testing.assert_close(masked[name], result, rtol=1e-6, atol=1e-6, equal_nan=True, msg=name)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("run", [informed, gated])
@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [
        ((2, 2, 2, 5), "contiguous", torch.float32),
        ((2, 4, 2, 3), "channels_last", torch.float32),
        ((2, 4, 2, 3), "channels_last", torch.float16),
        ((2, 2, 2, 3), "channels_last_cropped", torch.float32),
    ],
)
def test_a_sample_alone_gives_the_bits_of_the_batch(
    run: Run, shape: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    x, grad = laid_out(values(shape).to(dtype), layout).to(DEVICE), values(shape).to(DEVICE, dtype)
    batch, again, alone = run(x, grad, Options()), run(x, grad, Options()), run(x[1:], grad[1:], Options())
    for name, result in batch.items():
        assert torch.equal(result, again[name]), name
        assert torch.equal(result[:, 1:] if name == "scale" else result[1:], alone[name]), name


def test_aligned_channels_are_loaded_together() -> None:
    plan = modules()[3]
    aligned = torch.zeros(2, 8, 5, 5).to(memory_format=torch.channels_last)
    assert plan.window_plan(aligned).tiling.vector == 4
    assert plan.window_plan(aligned[:, 1:5]).tiling.vector == 0
    assert plan.window_plan(torch.empty(2, 6, 5, 5).to(memory_format=torch.channels_last)).tiling.vector == 0
    assert plan.flat_plan(torch.empty(2, 3, 4, 5)).tiling.vector == 4
    assert plan.flat_plan(torch.empty(2, 3, 3, 5)).tiling.vector == 0


def test_attending_writes_no_map_of_information() -> None:
    dispatch, launch = modules()[1:3]
    x = torch.empty(2, 3, 64, 64, device="meta")
    with launch.noted() as launches:
        dispatch.gate_and_mean(x, Options(), True, "excite")
    maps = [
        name
        for each in launches
        for name, value in each.arguments.items()
        if isinstance(value, Tensor) and value.numel() >= x.numel() and value is not x
    ]
    assert maps == ["gated"]
    assert [each.kernel.name for each in launches] == ["spread", "finish", "information", "finish"]


@pytest.mark.skipif(GPU, reason="counts what the interpreter does")
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_exponentials_per_output(kernel_size: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = importlib.import_module("triton.runtime.interpreter")
    counts: list[int] = []
    exp2: Callable[..., Any] = interpreter.InterpreterBuilder.create_exp2

    def counted(builder: Any, argument: Any) -> Any:
        counts.append(argument.data.size)
        return exp2(builder, argument)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_exp2", counted)
    x = values((1, 16, 16, 16)).float()[:, : 16 if channels_last else 1]
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    backend.self_information(x, Options(kernel_size, inter_channels=0))
    assert sum(counts) == (kernel_size**2 - 1) * x.numel()
    counts.clear()
    backend.self_information(x, Options(kernel_size, inter_channels=3))
    steps = 3 if channels_last else 0
    assert sum(counts) == (kernel_size**2 - 1 + steps) * x.numel()


def test_importing_it_does_not_import_triton() -> None:
    code = (
        "import sys, sia_layers.kernels.triton as t; t.refuses(__import__('torch').zeros(1, 1, 2, 2)); "
        "assert 'triton' not in sys.modules, 'triton'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refusals_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1, 2, 2)
    assert "float64" in str(backend.refuses(x.double()))
    assert "meta" in str(backend.refuses(x.to("meta")))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "cpu" in str(backend.refuses(x))
    if not GPU:
        assert "no CUDA or ROCm device" in str(backend.unavailable())


def test_a_broken_triton_says_what_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[[str], Any]:
        def load(name: str) -> Any:
            raise error

        return load

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    missing = ModuleNotFoundError("No module named 'triton'", name="triton")
    for error, reason in (
        (missing, "pip install 'sia-layers[triton]'"),
        (ModuleNotFoundError("No module named 'numpy'", name="numpy"), "No module named 'numpy'"),
        (ImportError("libtriton.so: undefined symbol: x"), "undefined symbol: x"),
        (OSError("cannot load libcuda.so.1"), "OSError: cannot load libcuda.so.1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(backend.importlib, "import_module", failing(error))
            assert reason in str(backend.unavailable())


# --- On a device, at real sizes -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "channels_last_cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel_size", [3, 7, 11])
def test_real_sizes(layout: str, dtype: torch.dtype, kernel_size: int) -> None:
    for shape in ((4, 32, 95, 95), (2, 56, 48, 48), (2, 160, 24, 24), (1, 3, 517, 1030)):
        for run in (informed, gated):
            check(run, laid_out(values(shape).to(DEVICE, dtype), layout), Options(kernel_size))


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_every_form_at_real_size(estimator: str, padding_mode: str) -> None:
    for layout in ("contiguous", "channels_last"):
        chosen = Options(5, estimator=estimator, padding_mode=padding_mode)
        check(informed, Map((2, 24, 70, 90), layout=layout).make(DEVICE), chosen)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(40, 3, 4500, 4200), (1, 1, 46400, 46400), (3, 64, 3400, 3400)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_offsets_beyond_32_bits(shape: tuple[int, int, int, int], channels_last: bool) -> None:
    """The last corner of a map of more than 2^31 elements equals the same pixels computed separately."""
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 5 * 2 * elements + 2**32:
        pytest.skip(f"needs {(5 * 2 * elements + 2**32) / 2**30:.0f} GiB of free memory on the device")
    chosen = Options(3, adaptive=False)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, memory_format=memory_format).normal_()
    corner, inner = x[-1:, :, -70:, -70:].contiguous(), (slice(None), slice(None), slice(1, None), slice(1, None))
    info, scale = backend.self_information(x, chosen)
    expected, _ = backend.self_information(corner, chosen)
    assert torch.equal(info[-1:, :, -70:, -70:][inner], expected[inner])
    gradient = backend.self_information_backward(x, x, scale, chosen)
    expected = backend.self_information_backward(corner, corner, scale[:, -1:], chosen)
    assert torch.equal(gradient[-1:, :, -68:, -68:], expected[:, :, 2:, 2:])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second device")
def test_kernels_run_where_their_tensors_are() -> None:
    x = values((2, 8, 33, 35)).float()
    info, _ = backend.self_information(x.to("cuda:1"), Options())
    assert info.device == torch.device("cuda:1")
    assert_near(info, reference.self_information(x.double(), Options())[0], FORWARD)
