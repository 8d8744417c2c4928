"""The benchmarks: they run, refuse to print a figure for a wrong result, and resume where they stopped."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("benchmarks.harness", reason="runs from a checkout, where benchmarks/ is")

from benchmarks import __main__ as everything
from benchmarks import harness, limit, maps, op, peers, plots, providers, scaling, timing, variants
from sia_layers.kernels import backends, reference
from sia_layers.kernels.options import Options

CPU = torch.device("cpu")
needs_cpu_kernels = pytest.mark.skipif(backends.unavailable("cpu") is not None, reason="no CPU kernels here")


@pytest.mark.parametrize("name", ["unfold", "shift"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_providers_compute_what_the_reference_does(name: str, channels_last: bool, dtype: torch.dtype) -> None:
    x = maps.made((2, 7, 9, 11), dtype, CPU, channels_last).requires_grad_()
    for options in (Options(3), Options(5, inter_channels=0), Options(3, adaptive=False)):
        truth, scale = reference.self_information(x.detach().double(), options)
        found = providers.created(name, options)(x)
        assert harness.agrees(found, truth, 1e-5)[0]
        (grad,) = torch.autograd.grad(found, x, torch.ones_like(found))
        exact = reference.self_information_backward(torch.ones_like(truth), x.detach().double(), scale, options)
        assert harness.agrees(grad, exact, 1e-4 if dtype == torch.float32 else 2e-2)[0]


@needs_cpu_kernels
@pytest.mark.parametrize("direction", op.PASSES)
def test_no_figure_for_a_wrong_result(
    direction: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = providers.created
    wrong = {"shift": lambda x: 1.01 * right("shift", case.options)(x)}
    monkeypatch.setattr(op, "PROVIDERS", ("unfold", "shift"))
    monkeypatch.setattr(providers, "created", lambda name, options: wrong.get(name) or right(name, options))
    case = op.Case("small", (1, 4, 8, 8), Options(3), "float32", False, direction)
    table = harness.Table(CPU, op.COLUMNS)
    op.measure(case, CPU, 1, table, memory=False)
    rows = {row["provider"]: row for row in table.rows}
    assert rows["shift"]["ms"] == "disagrees with the reference: not timed" and "times" not in rows["shift"]
    assert rows["unfold"]["ms"] > 0 and rows["cpu"]["times"] == 1.0
    assert "not timed" in capsys.readouterr().out


@needs_cpu_kernels
def test_variants_are_checked_and_compared_with_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = variants.ops.self_information

    def wrong(x: torch.Tensor, options: Options, backend: str) -> torch.Tensor:
        return right(x, options, backend) + (options.padding_mode == "zeros")

    monkeypatch.setattr(variants.ops, "self_information", wrong)
    table = harness.Table(CPU, variants.COLUMNS)
    variants.measure("small", (1, 10, 8, 8), 3, CPU, 1, table)
    rows = {row["variant"]: row for row in table.rows}
    assert rows.keys() == variants.VARIANTS.keys() and rows["plain"]["times plain"] == 1.0
    assert rows.pop("zeros")["ms"] == harness.DISAGREES
    assert all(row["ms"] > 0 and row["times plain"] > 0 for row in rows.values())


def test_rounds_are_interleaved() -> None:
    order = []
    seconds = timing.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert "".join(order) == "aabbcc" * 2
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratios_are_taken_round_by_round() -> None:
    assert timing.ratios([1.0, 20.0, 300.0], [1.0, 10.0, 100.0]) == pytest.approx((1.4, 2.0, 2.6))


def test_slope() -> None:
    assert scaling.slope([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_work_is_that_of_the_pairs() -> None:
    work = limit.work_of((2, 3, 5, 4), Options(3, inter_channels=2))
    # 5 x 3 along rows, 4 x 4 along columns, twice 4 x 3 across; and two channels for each of 20 pixels.
    assert work.exponentials == 6 * (15 + 16 + 24 + 40)
    assert work.bytes == 2 * 4 * 2 * 3 * 5 * 4


@needs_cpu_kernels
def test_limit_measures_the_machine(tmp_path: Path) -> None:
    try:
        made = limit.built(tmp_path)
    except SystemExit as error:
        pytest.skip(str(error))
    rates = limit.rates_of(made, (torch.ones(1 << 16), torch.ones(1 << 16)), rounds=1000)
    assert rates.floats in (4, 8, 16)
    assert 0 < rates.multiply_add < rates.exponential < 1e-6


def test_csv_holds_the_machine(tmp_path: Path) -> None:
    table = harness.Table(CPU, {"name": "<8", "ms": "6.2f"})
    table.add(name="first", ms=1.25)
    table.add(name="second", ms="not timed")
    table.write(tmp_path / "deep" / "rows.csv")
    with open(tmp_path / "deep" / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ms"] for row in rows] == ["1.25", "not timed"]
    assert rows[0]["machine"] and rows[0]["commit"] and rows[0]["versions"].startswith("torch ")


def test_a_repeated_call_resumes_and_fills_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    marks = "before\n<!-- {0} -->\nstale\n<!-- end of {0} -->\nafter\n"
    page.write_text(marks.format("limit") + marks.format("op-maps"))
    table = harness.Table(CPU, {"K": "1d"})
    table.add(K=3, S=5, **{"ns/exp": 1.23456, "of limit %": 50})
    table.write(tmp_path / "limit.csv")
    table = harness.Table(CPU, {"map": "<1"})
    table.add(map="m", shape="1x2", provider="unfold", ms=1234.5, times=10.04)
    table.add(map="m", shape="1x2", provider="cpu", ms=123.45, times=1.0)
    table.write(tmp_path / "op-maps.csv")
    assert everything.main(["limit", "--results", str(tmp_path), "--page", str(page)]) == 0
    assert "already exists" in capsys.readouterr().out
    text = page.read_text()
    assert (
        "| K | S | ns/exp | of limit % |\n| --- | --- | --- | --- |\n| 3 | 5 | 1.23 | 50 |\n<!-- end of limit" in text
    )
    assert "| map | shape | unfold | cpu |" in text
    assert "| m | 1x2 | 1234 ms, 10× | 123 ms, 1× |\n<!-- end of op-maps -->\nafter\n" in text and "stale" not in text
    assert (tmp_path / "images" / "limit.png").stat().st_size > 2000


def test_quick_runs_leave_the_page_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, text = tmp_path / "page.md", "<!-- limit -->\nfull\n<!-- end of limit -->\n"
    page.write_text(text)
    monkeypatch.setattr(everything, "PAGE", page)
    commands: list[list[str]] = []
    monkeypatch.setattr(
        everything.subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0)
    )
    table = harness.Table(CPU, {"K": "1d"})
    table.add(K=3, S=5)
    table.write(tmp_path / "limit.csv")
    assert everything.main(["limit", "gpu", "--quick", "--results", str(tmp_path)]) == 0
    assert page.read_text() == text and [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    (command,) = commands
    assert command[2] == "benchmarks.gpu_report" and "--quick" in command and "--page" not in command


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {"map": "m", "pass": "forward", "dtype": "float32", "S": 5, "layout": "NCHW", "K": 3}
    plots.speedups(
        [{**row, "provider": "unfold", "times": 80.0}, {**row, "provider": "cpu", "times": 1.0}], tmp_path / "a.png"
    )
    plots.bars([{"layer": "se", "ms": 1.0}, {"layer": "sia", "ms": 2.0}], tmp_path / "b.png", "layer", ["ms"])
    rows = [{"axis": "K", "size": size, "provider": "cpu", "ms": size * 1.0} for size in (3, 5, 7)]
    plots.curves([*rows[:-1], {**rows[-1], "slope": 1.0}], tmp_path / "c.png")
    row = {"model": "m", "pass": "training", "batch": 1}
    plots.added(
        [{**row, "variant": "bare", "added %": 0}, {**row, "variant": "sia", "added %": 4.5}], tmp_path / "d.png"
    )
    assert all((tmp_path / name).stat().st_size > 2000 for name in ("a.png", "b.png", "c.png", "d.png"))


@needs_cpu_kernels
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory, other systems do not")
def test_peak_memory_is_that_of_the_run() -> None:
    found = {}
    for name in ("unfold", "cpu"):
        case = op.Case("m", (4, 32, 64, 64), Options(7)._asdict(), "float32", False, "forward")
        found[name] = harness.peak_memory("benchmarks.op", "for_memory", [name, case, "cpu"], CPU)
    size = 4 * 32 * 64 * 64 * 4 / 2**20
    # One stores its windows several times over; the other writes little more than its output.
    assert 2 * 49 * size < found["unfold"] < 10 * 49 * size
    assert 0.5 * size < found["cpu"] < 10 * size


@pytest.mark.parametrize("inter_channels", [0, 3])
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_agree_with_the_reference(name: str, inter_channels: int) -> None:
    if name not in peers.installed():
        pytest.skip(f"{name} is not installed: pip install sia-layers[peers]")
    options = Options(5, inter_channels=inter_channels)
    x = torch.randn(2, 4, 9, 17, generator=torch.Generator().manual_seed(0))
    truth = reference.self_information(x.double(), options)[0]
    found = peers.created(name, options, x.shape)(x)
    torch.testing.assert_close(
        found.double(), peers.bilateral(x, options) if name == "opencv" else truth, atol=1e-5, rtol=0
    )


def test_with_peers_only_the_forward_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        op.main(["--peers", "--passes", "both"])
    assert "omit --device, --dtype, --passes and --memory" in capsys.readouterr().err
