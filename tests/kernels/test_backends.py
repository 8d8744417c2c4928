"""The choice of a backend, with stand-ins for the real ones."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch
from conftest import serving
from torch import Tensor

import sia_layers.kernels as kernels
from sia_layers import available_backends, explain_backend, self_information, use_backend
from sia_layers.kernels import backends
from sia_layers.kernels.cpu import library

X = torch.zeros(1, 1, 4, 4)

Add = Callable[..., ModuleType]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Insert a stand-in backend at the front of the list, which initially has only the reference."""
    monkeypatch.setattr(backends, "BACKENDS", ("reference",))
    backends._announce.cache_clear()

    def add(name: str, unavailable: str | None = None, refuses: str | None = None) -> ModuleType:
        module = ModuleType(f"{kernels.__name__}.{name}")
        module.unavailable = lambda: unavailable  # type: ignore[attr-defined]
        module.refuses = lambda x: refuses  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(kernels, name, module, raising=False)
        monkeypatch.setattr(backends, "BACKENDS", (name, *backends.BACKENDS))
        return module

    return add


def test_the_best_available_backend_is_chosen(add: Add) -> None:
    assert backends.select(X) == "reference"
    add("slow")
    add("picky", refuses="it is picky")
    assert backends.select(X) == "slow"
    add("fast")
    assert backends.select(X) == "fast"


def test_a_named_backend_takes_precedence(add: Add) -> None:
    add("slow")
    add("fast")
    assert backends.select(X, "slow") == "slow"
    with use_backend("reference"):
        assert backends.select(X) == "reference"
        assert backends.select(X, "fast") == "fast"


@pytest.mark.parametrize("why", [{"unavailable": "it is not built"}, {"refuses": "it takes no zeros"}])
def test_a_named_backend_that_cannot_serve_says_why(add: Add, why: dict[str, str]) -> None:
    add("fast", **why)
    with pytest.raises(RuntimeError, match=rf"'fast' cannot serve this tensor: {next(iter(why.values()))}; .*=None"):
        backends.select(X, "fast")
    with use_backend("fast"), pytest.raises(RuntimeError, match="'fast' cannot serve"):
        self_information(X)


@pytest.mark.parametrize(("name", "error"), [("cuda", ValueError), ("", ValueError), (1, TypeError)])
def test_unknown_names(name: str, error: type[Exception]) -> None:
    for refused in (lambda: backends.select(X, name), lambda: use_backend(name), lambda: explain_backend(X, name)):
        with pytest.raises(error, match=f"'triton', 'cpu', 'reference', or None .*, got {name!r}"):
            refused()
    with pytest.raises(error):
        self_information(X, backend=name)


# --- A better one that cannot run ----------------------------------------------------------------------------------


def test_a_missing_backend_is_announced_once_per_process(add: Add) -> None:
    add("fast", unavailable="no compiler was at hand")
    with pytest.warns(RuntimeWarning, match=r"the 'fast' backend .* cannot run: no compiler was at hand") as caught:
        self_information(X)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select(X) == "reference"


def test_nothing_is_announced_that_would_not_have_served(add: Add) -> None:
    add("fast", unavailable="no compiler was at hand", refuses="it takes no zeros")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select(X) == backends.select(X, "reference") == "reference"
        explain_backend(X)
        available_backends()


def test_a_backend_is_not_asked_whether_it_runs_for_a_tensor_that_it_refuses(add: Add) -> None:
    def unavailable() -> str:
        raise AssertionError("looked for a GPU, for a tensor on the CPU")

    add("gpu", refuses="it serves CUDA").unavailable = unavailable  # type: ignore[attr-defined]
    assert backends.select(X) == "reference"


def test_the_interpreter_serves_only_if_named(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = backends.load("triton")
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "refuses", lambda x: None)
    assert backends.select(X) != "triton"
    assert backends.select(X, "triton") == "triton"
    assert explain_backend(X).startswith("triton: its interpreter could run")
    assert explain_backend(X, "triton").startswith("triton: runs")


# --- use_backend ---------------------------------------------------------------------------------------------------


def test_blocks_nest_and_are_undone_by_errors(add: Add) -> None:
    add("fast")
    outer = use_backend("reference")
    with outer:
        with use_backend("fast"):
            assert backends.select(X) == "fast"
            with outer:
                assert backends.select(X) == "reference"
            with use_backend(None):
                assert backends.select(X) == "fast"
        with pytest.raises(ZeroDivisionError), use_backend("fast"):
            _ = 1 / 0
        assert backends.select(X) == "reference"
    assert backends.select(X) == "fast"


def test_decorator(add: Add) -> None:
    add("fast")

    @use_backend("reference")
    def chosen(deeper: int) -> str:
        return chosen(deeper - 1) if deeper else backends.select(X)

    assert chosen(3) == "reference"
    assert backends.select(X) == "fast"


def test_every_thread_has_its_own() -> None:
    names = ["reference", None] * 4
    barrier = threading.Barrier(len(names))
    shared = {name: use_backend(name) for name in names}

    def work(name: str | None) -> bool:
        with shared[name]:
            barrier.wait()
            held = backends._ambient.names
            barrier.wait()
        return held == (name,) and backends._ambient.names == ()

    with ThreadPoolExecutor(len(names)) as pool, use_backend("reference"):
        assert all(pool.map(work, names))
        assert backends._ambient.names == ("reference",)


def test_backward_runs_on_the_backend_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 2, 4, 4, requires_grad=True)
    called = []
    backward = backends.load("reference").self_information_backward

    def noting(*arguments: object) -> Tensor:
        called.append(arguments)
        return backward(*arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(backends.load("reference"), "self_information_backward", noting)
    with use_backend("reference"):
        info = self_information(x)
    info.sum().backward()
    assert len(called) == 1


# --- What can be read ----------------------------------------------------------------------------------------------


def test_explanation(add: Add) -> None:
    add("slow")
    add("fast")
    add("picky", refuses="it takes no zeros")
    add("missing", unavailable="it is not installed")
    expected = {
        "missing": "it is not installed",
        "picky": "it takes no zeros",
        "fast": "runs",
        "slow": "could run, but 'fast' takes precedence",
        "reference": "could run, but 'fast' takes precedence",
    }
    assert dict(line.split(": ", 1) for line in explain_backend(X).splitlines()) == expected
    with use_backend("slow"):
        text = explain_backend(X)
    assert text == explain_backend(X, "slow")
    assert "fast: could run, but 'slow' was requested" in text and "slow: runs" in text
    assert available_backends() == ("picky", "fast", "slow", "reference")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_explanation_names_the_one_that_runs(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    lines = explain_backend(x).splitlines()
    assert [line.split(":")[0] for line in lines] == list(backends.BACKENDS)
    assert [line for line in lines if line.endswith(": runs")] == [f"{backends.select(x)}: runs"]


def test_a_wrong_level_is_an_error_wherever_backends_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    serving("cpu")
    monkeypatch.setenv(library.LEVEL_VARIABLE, "sse")
    library.best_level.cache_clear()
    try:
        for ask in (backends.explain_backend, backends.select):
            with pytest.raises(ValueError, match=r"SIA_LAYERS_CPU_LEVEL must be one of .*, got 'sse'"):
                ask(torch.zeros(1, 1, 2, 2))
    finally:
        library.best_level.cache_clear()
