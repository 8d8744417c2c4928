"""Shared parts of the tests: the available backends, poisoned memory, seeds and hypothesis profiles."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings
from interpreter import quicken

from sia_layers.kernels import backends

gc.set_threshold(20_000, 20, 50)  # at Python's default of 700 objects, collections took a tenth of the tests' time
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1 and "OMP_NUM_THREADS" not in os.environ:
    # Threads of several workers that each use all cores would wait for each other.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # for the processes that tests start

GPU = torch.cuda.is_available()
if not GPU:
    # Triton's interpreter lets its kernels serve CPU tensors; Triton reads the variable when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    from PIL import Image as PILLOW

    OPEN = PILLOW.open
except ImportError:
    PILLOW = OPEN = None

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
if os.environ.get("CI"):
    COMMON |= {"derandomize": True, "database": None}
for name, examples in {"fast": 5, "default": 15, "all": 40, "thorough": 2000}.items():  # --hypothesis-profile
    settings.register_profile(name, max_examples=examples, **COMMON)
settings.load_profile("default")


def every_case() -> bool:
    """Return whether the hypothesis profile is at least that of ``make test-all``."""
    return settings.get_current_profile_name() in ("all", "thorough")


class Backend(NamedTuple):
    """A backend that is available in this process, and the device of its tensors."""

    name: str
    kernels: ModuleType
    device: torch.device

    @property
    def interpreted(self) -> bool:
        """Whether it is interpreted, and so slow that tests can afford only a few tiny maps."""
        return self.name == "triton" and self.device.type == "cpu"


def serving(name: str) -> Backend:
    """Return the backend of that name, or skip the test, with the backend's own reason, if it is not available."""
    reason = backends.unavailable(name)
    if reason is not None:
        pytest.skip(f"backend {name!r}: {reason}")
    if name == "triton" and not GPU:
        quicken()
    return Backend(name, backends.load(name), torch.device("cuda" if name == "triton" and GPU else "cpu"))


@pytest.fixture(scope="session", params=backends.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Return every backend in turn."""
    return serving(request.param)


@pytest.fixture(scope="session", params=[name for name in backends.BACKENDS if name != "reference"])
def kernel_backend(request: pytest.FixtureRequest) -> Backend:
    """Return every backend except the reference in turn."""
    return serving(request.param)


@pytest.fixture(scope="module")
def poison() -> Iterator[None]:
    """Fill newly allocated tensors with NaN, to expose reads of uninitialised memory."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def _pillow_as_it_comes() -> None:
    """Undo what importing ultralytics does to Pillow for the whole process, since it changes how files are read."""
    if PILLOW is not None:
        PILLOW.open = OPEN


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Start every test from one seed, and restore torch's number of threads after it."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: Counter[str] = Counter()
    for item in items:
        if not GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device, and torch sees none"))
        sampled = item.get_closest_marker("sampled")
        if sampled is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > sampled.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Spare the garbage collector all that has been imported, through which it would look again and again."""
    gc.collect()
    gc.freeze()
