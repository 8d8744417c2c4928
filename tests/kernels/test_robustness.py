"""Identical bits from many threads, in forked and spawned processes, beside torch's work, and in dirty memory."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from conftest import Backend, serving
from strategies import Map
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sia_layers import SIAttention
from sia_layers.functional import self_information
from sia_layers.kernels import cpu
from sia_layers.kernels.options import Options

# Python warns of every fork beside a thread: exactly the case under test.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

PATIENCE = 60  # seconds after which a silent process or thread counts as hung
SIZES = ((2, 8, 40, 41), (1, 3, 200, 160), (3, 33, 7, 9), (1, 1, 1, 1))
Result = TypeVar("Result")


@pytest.fixture(scope="module", params=["reference", "cpu"])
def host_backend(request: pytest.FixtureRequest) -> Backend:
    """Return the backends for CPU tensors, except Triton's interpreter, which keeps its state in globals."""
    return serving(request.param)


def maps(layout: str = "contiguous") -> list[Tensor]:
    return [Map(size, layout=layout, seed=seed).make() for seed, size in enumerate(SIZES)]


def train(x: Tensor, backend: str) -> list[Tensor]:
    """Return a map and the gradients of a step: everything that the kernels compute, forward and backward."""
    torch.manual_seed(0)
    module = SIAttention(x.shape[1], kernel_size=5, detach=False, gain=0.5, backend=backend)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y, info = module.attend(leaf)
    (y.square().mean() + info.mean()).backward()
    learnt = [leaf, *module.parameters()]
    gradients = [tensor.grad for tensor in learnt if tensor.grad is not None]
    return [self_information(x, 7, backend=backend), y.detach(), info.detach(), *gradients]


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def at_once(tasks: list[Callable[[], Result]]) -> list[Result]:
    """Run each task in a separate thread, all starting together, and raise errors here."""
    start, results, errors = threading.Barrier(len(tasks)), {}, []

    def run(index: int) -> None:
        try:
            start.wait(PATIENCE)
            results[index] = tasks[index]()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "hung"
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(tasks))]


# --- Threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_at_once_get_the_bits_of_one(host_backend: Backend, threads: int) -> None:
    torch.set_num_threads(threads)
    inputs = maps() + maps("channels_last")
    expected = [self_information(x, 7, backend=host_backend.name) for x in inputs]

    def work(offset: int) -> Callable[[], list[Tensor]]:
        order = inputs[offset:] + inputs[:offset]
        return lambda: [self_information(x, 7, backend=host_backend.name) for x in order for _ in range(3)]

    for offset, found in enumerate(at_once([work(offset) for offset in range(len(inputs))])):
        order = expected[offset:] + expected[:offset]
        assert same_bits(found, [tensor for tensor in order for _ in range(3)])


def test_one_module_in_many_threads(host_backend: Backend) -> None:
    module = SIAttention(8, backend=host_backend.name).eval()
    inputs = [Map((2, 8, 24, 31), seed=seed).make() for seed in range(6)]
    with torch.no_grad():
        expected = [module(x) for x in inputs]

    def work(x: Tensor) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with torch.no_grad():
                return [module(x) for _ in range(5)]

        return run

    for found, alone in zip(at_once([work(x) for x in inputs]), expected, strict=True):
        assert same_bits(found, [alone] * 5)


def test_torch_operations_beside_the_kernels(host_backend: Backend) -> None:
    torch.set_num_threads(2)
    inputs, matrix = maps(), torch.randn(300, 300)
    expected, product = [train(x, host_backend.name) for x in inputs], matrix @ matrix

    def multiply() -> bool:
        return all(torch.equal(matrix @ matrix, product) for _ in range(30))

    def attend() -> bool:
        found = [[self_information(x, 7, backend=host_backend.name)] for x in inputs for _ in range(3)]
        return all(same_bits(one, expected[index // 3][:1]) for index, one in enumerate(found))

    assert at_once([multiply, attend, multiply, attend]) == [True] * 4
    assert all(same_bits(train(x, host_backend.name), known) for x, known in zip(inputs, expected, strict=True))


# --- Processes -----------------------------------------------------------------------------------------------------


def kernels_alone(inputs: list[Tensor]) -> list[bytes]:
    """Return all results of the C kernels without torch operations, whose own threads do not survive a fork."""
    results: list[Tensor] = []
    for x in inputs:
        info, scale = cpu.self_information(x, Options(7))
        gradients = cpu.gate_backward(x, x, info, None, None, None, True)
        results += [info, cpu.self_information_backward(x, x, scale, Options(7)), *gradients[:2]]
        results += [cpu.gate(x, info, None, None, None), cpu.channel_mean(info, "mean")]
    return [result.numpy().tobytes() for result in results]


def answer(connection: Connection, threads: int, inputs: list[Tensor]) -> None:
    torch.set_num_threads(threads)
    connection.send(kernels_alone(inputs))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_forked_child_of_a_parent_that_used_threads(threads: int) -> None:
    serving("cpu")
    torch.set_num_threads(2)
    inputs = maps() + maps("channels_last")
    expected = kernels_alone(inputs)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=answer, args=(there, threads, inputs), daemon=True)
    child.start()
    there.close()
    try:
        assert here.poll(PATIENCE), "the child process hung"
        assert here.recv() == expected
    finally:
        child.kill()
        child.join()
    assert kernels_alone(inputs) == expected, "the parent was harmed"


class Maps(Dataset[Tensor]):
    """A data set that computes self-information as its samples are read."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        x = Map((1, 4, 90, 91), seed=index).make()
        return self_information(x, 5, backend=self.backend)[0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_data_loader_workers(host_backend: Backend, method: str) -> None:
    if method == "forkserver":
        pytest.skip("it forks from a process that never ran a kernel, as spawn does")
    torch.set_num_threads(2)
    dataset = Maps(host_backend.name)
    expected = [dataset[index] for index in range(len(dataset))]
    workers = 2 if method == "fork" else 1
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, timeout=PATIENCE, multiprocessing_context=method)
    found = [sample for batch in loader for sample in batch]
    assert same_bits(found, expected)


# --- Memory --------------------------------------------------------------------------------------------------------

DIRTY = """
    import torch
    from oracle import assert_near
    from strategies import DTYPES, Map
    from sia_layers.kernels import cpu, reference
    from sia_layers.kernels.options import Options

    for size in ((2, 5, 9, 17), (1, 40, 5, 6), (1, 2, 60, 70)):
        for dtype in DTYPES:
            for layout in ("contiguous", "channels_last", "stepped"):
                for chosen in (Options(5), Options(7, padding_mode="reflect" if min(size[2:]) > 4 else "zeros")):
                    chosen = chosen._replace(kernel_size=min(chosen.kernel_size, 2 * min(size[2:]) - 1))
                    x = Map(size, dtype, layout).make()
                    info, scale = cpu.self_information(x, chosen)
                    grad = cpu.self_information_backward(x, x, scale, chosen)
                    wide = x.double()
                    truth = reference.self_information(wide, chosen)[0]
                    slope = reference.self_information_backward(wide, wide, scale.double(), chosen)
                    assert_near(info, truth, 5e-6)
                    assert_near(grad, slope, 4e-6 * slope.abs().max())
    print("clean")
"""


def test_scratch_memory_is_written_before_it_is_read() -> None:
    """glibc fills allocated memory with 0x7f bytes, 3e38 as a float, and freed memory with 0x80."""
    serving("cpu")
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "MALLOC_PERTURB_": "128", "PYTHONPATH": here}
    command = [sys.executable, "-c", textwrap.dedent(DIRTY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "clean\n", done.stderr
