"""Which backend runs: one list of them, best first, and the choice among them for a tensor."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Final, TypeVar, cast

from torch import Tensor

import sia_layers.kernels as kernels

# In order of preference. Each is a module of this package with the functions of the reference, and with two probes
# that say why not: unavailable() for this process, refuses(x) for a tensor. The reference runs always and needs none.
BACKENDS: Final = ("triton", "cpu", "reference")

Function = TypeVar("Function", bound=Callable[..., object])


class _Ambient(threading.local):
    """The names that this thread's open ``use_backend`` blocks hold, innermost last."""

    # A ContextVar would do as well, but torch.compile cannot trace one being set. The attribute must be the
    # instance's own: torch.compile puts no guard on a default that the class holds.
    def __init__(self) -> None:
        self.names: tuple[str | None, ...] = ()


_ambient = _Ambient()


class use_backend(contextlib.ContextDecorator):
    """Choose the backend for all that runs inside a ``with`` block, in this thread; also a decorator.

    A ``backend`` that a function or module was given goes before it. Blocks may be nested, and one object may
    be entered again. What a block started is not changed by its end: a backward pass uses the backend of its
    forward pass.

    Args:
        backend: one of ``available_backends()``; None for the best that can serve, as without a block.

    Raises:
        TypeError, ValueError: no such backend. One that cannot run, or cannot serve a tensor, says so when used.

    Example:
        >>> import torch
        >>> from sia_layers import self_information, use_backend
        >>> with use_backend("reference"):
        ...     self_information(torch.zeros(1, 1, 2, 2)).max().item()
        0.0
    """

    def __init__(self, backend: str | None) -> None:
        self.backend = checked(backend)

    def __enter__(self) -> None:
        _ambient.names = (*_ambient.names, self.backend)

    def __exit__(self, *error: object) -> None:
        _ambient.names = _ambient.names[:-1]


def select(x: Tensor, backend: str | None = None) -> str:
    """The name of the backend that serves a tensor.

    Args:
        x: the tensor; its device, dtype and layout count.
        backend: this one; None for that of the innermost :class:`use_backend`, else the best that can serve.

    Raises:
        TypeError, ValueError: no such backend.
        RuntimeError: the named backend cannot serve; the message says why.
    """
    backend = _wanted(backend)
    if backend is not None:
        reason = unavailable(backend) or refuses(backend, x)
        if reason is not None:
            raise RuntimeError(
                f"backend {backend!r} cannot serve this tensor: {reason}; "
                "choose another, or backend=None for the best that can"
            )
        return backend
    for name in BACKENDS:
        # The tensor is asked about first, so that a job on the CPU never looks for a GPU or its compiler.
        if not _on_request(name, x) and refuses(name, x) is None:
            if unavailable(name) is None:
                return name
            announce(name)
    raise AssertionError("the reference serves every tensor")


def explain_backend(x: Tensor, backend: str | None = None) -> str:
    """Which backend would run for a tensor, and why each other one would not: a line for each.

    Args:
        x: the tensor.
        backend: as given to a function or module; None for the ambient choice, else the best that can serve.

    Example:
        >>> import torch
        >>> from sia_layers import explain_backend
        >>> print(explain_backend(torch.zeros(1, 3, 8, 8, dtype=torch.float64)).splitlines()[-1])
        reference: runs
    """
    wanted, chosen = _wanted(backend), None
    lines = []
    for name in BACKENDS:
        reason = unavailable(name) or refuses(name, x)
        if reason is None and wanted is None and _on_request(name, x):
            reason = "its interpreter could run, slowly, but has to be asked for by name"
        elif reason is None and wanted not in (None, name):
            reason = f"could run, but {wanted!r} was asked for"
        elif reason is None and chosen is not None:
            reason = f"could run, but {chosen!r} goes before it"
        elif reason is None:
            chosen, reason = name, "runs"
        lines.append(f"{name}: {reason}")
    return "\n".join(lines)


def available_backends() -> tuple[str, ...]:
    """The backends that can run in this process, best first."""
    return tuple(name for name in BACKENDS if unavailable(name) is None)


def load(name: str) -> ModuleType:
    """The module of a backend, imported at its first use."""
    _import(name)
    return cast(ModuleType, getattr(kernels, name))


def constant_when_compiled(function: Function) -> Function:
    """Let torch.compile call a function while it traces, and take its result for a constant."""
    # The mark that torch.compiler.assume_constant_result leaves; to call that one would import the compiler here.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def _import(name: str) -> None:
    module = importlib.import_module(f"{kernels.__name__}.{name}")
    if name != "reference":
        constant_when_compiled(module.unavailable)


def unavailable(name: str) -> str | None:
    """Why a backend cannot run in this process; None if it can."""
    return None if name == "reference" else cast("str | None", load(name).unavailable())


def refuses(name: str, x: Tensor) -> str | None:
    """Why a backend cannot serve a tensor; None if it can."""
    return None if name == "reference" else cast("str | None", load(name).refuses(x))


def _on_request(name: str, x: Tensor) -> bool:
    """Whether a backend never serves a tensor unless named: Triton's interpreter, which is for tests."""
    return name == "triton" and x.device.type != "cuda"


@constant_when_compiled
def announce(name: str) -> None:
    """Say, once a process, that a backend would have served but cannot run."""
    _announce(name)


@functools.cache
def _announce(name: str) -> None:
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sia_layers"):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"sia_layers: the {name!r} backend would serve here but cannot run: {unavailable(name)}. "
        "A slower one serves; the results are the same.",
        RuntimeWarning,
        stacklevel=level,  # the caller's line
    )


def checked(backend: str | None) -> str | None:
    """The name of a backend, or None, if it is one.

    Raises:
        TypeError, ValueError: it is not.
    """
    if backend is None or (isinstance(backend, str) and backend in BACKENDS):
        return backend
    listed = ", ".join(repr(name) for name in BACKENDS)
    error = ValueError if isinstance(backend, str) else TypeError
    raise error(f"backend must be one of {listed}, or None for the best that can serve, got {backend!r}")


def _wanted(backend: str | None) -> str | None:
    """The backend that was asked for, at the call or around it."""
    return checked(backend) if backend is not None or not _ambient.names else _ambient.names[-1]
