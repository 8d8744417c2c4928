"""List the backends, best first, and choose one for a tensor."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor

import sia_layers.kernels as kernels
from sia_layers.kernels.contract import Backend
from sia_layers.kernels.private_torch import constant_when_compiled

# In order of preference. Each names a module of this package that fulfils the contract.
BACKENDS: Final = ("triton", "cpu", "reference")

if TYPE_CHECKING:  # so that the type checker compares each module with the contract
    from sia_layers.kernels import cpu, reference, triton

    _FULFILLED: tuple[Backend, ...] = (triton, cpu, reference)


class _Ambient(threading.local):
    """The names in this thread's open ``use_backend`` blocks, innermost last."""

    # Not a ContextVar, because torch.compile cannot trace setting one. The attribute must belong to the instance,
    # because torch.compile does not guard a default that belongs to the class.
    def __init__(self) -> None:
        self.names: tuple[str | None, ...] = ()


_ambient = _Ambient()
_loaded: set[str] = set()


class use_backend(contextlib.ContextDecorator):
    """Choose the backend for everything inside a ``with`` block, in this thread; also works as a decorator.

    The ``backend`` argument of a function or module takes precedence. Blocks nest, and an object may be entered more
    than once. A backward pass runs on the backend of its forward pass, even after the block has ended.

    Args:
        backend: one of ``available_backends()``; None for the best that can serve, as outside of any block.

    Raises:
        TypeError, ValueError: ``backend`` is no backend's name. A backend that cannot run, or cannot serve a tensor,
            raises only when it is used.

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
    """Return the name of the backend that serves a tensor.

    Args:
        x: the tensor; only its device, dtype and shape matter.
        backend: the backend to use; None for that of the innermost :class:`use_backend` block, or else the best that
            can serve.

    Raises:
        TypeError, ValueError: ``backend`` is no backend's name.
        RuntimeError: the named backend cannot serve; the message says why.
    """
    backend = wanted(backend)
    if backend is not None:
        reason = unavailable(backend) or refuses(backend, x)
        if reason is not None:
            raise RuntimeError(
                f"backend {backend!r} cannot serve this tensor: {reason}; "
                "choose another, or backend=None for the best that can"
            )
        return backend
    for name in BACKENDS:
        # Check the tensor first, so that a job on the CPU never looks for a GPU or its compiler.
        if not _on_request(name, x) and refuses(name, x) is None:
            if unavailable(name) is None:
                return name
            announce(name)
    raise AssertionError("the reference serves every tensor")


def explain_backend(x: Tensor, backend: str | None = None) -> str:
    """Say which backend would run for a tensor, and why each of the others would not, one per line.

    Args:
        x: the tensor.
        backend: what a function or module would be given; None for the choice of the innermost :class:`use_backend`
            block, or else the best that can serve.

    Example:
        >>> import torch
        >>> from sia_layers import explain_backend
        >>> print(explain_backend(torch.zeros(1, 3, 8, 8, dtype=torch.float64)).splitlines()[-1])
        reference: runs
    """
    asked, chosen = wanted(backend), None
    lines = []
    for name in BACKENDS:
        reason = unavailable(name) or refuses(name, x)
        if reason is None and asked is None and _on_request(name, x):
            reason = "its interpreter could run, slowly, but has to be requested by name"
        elif reason is None and asked not in (None, name):
            reason = f"could run, but {asked!r} was requested"
        elif reason is None and chosen is not None:
            reason = f"could run, but {chosen!r} takes precedence"
        elif reason is None:
            chosen, reason = name, "runs"
        lines.append(f"{name}: {reason}")
    return "\n".join(lines)


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that can run in this process, best first."""
    return tuple(name for name in BACKENDS if unavailable(name) is None)


def load(name: str) -> Backend:
    """Return a backend, which is imported at its first use.

    Args:
        name: one of ``BACKENDS``.
    """
    if torch.compiler.is_compiling():
        _import(name)
    elif name not in _loaded:
        _import(name)
        _loaded.add(name)
    return cast(Backend, getattr(kernels, name))


@constant_when_compiled
def _import(name: str) -> None:
    module = importlib.import_module(f"{kernels.__name__}.{name}")
    constant_when_compiled(module.unavailable)


def unavailable(name: str) -> str | None:
    """Return why a backend cannot run in this process; None if it can."""
    return load(name).unavailable()


def refuses(name: str, x: Tensor) -> str | None:
    """Return why a backend cannot serve a tensor; None if it can."""
    return load(name).refuses(x)


def _on_request(name: str, x: Tensor) -> bool:
    """Tell whether a backend serves this tensor only if named: Triton's interpreter, which is meant for tests."""
    return name == "triton" and x.device.type != "cuda"


@constant_when_compiled
def announce(name: str) -> None:
    """Warn, once per process, that a backend would have served but cannot run."""
    _announce(name)


@functools.cache
def _announce(name: str) -> None:
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sia_layers"):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"sia_layers: the {name!r} backend would serve here but cannot run: {unavailable(name)}. "
        "A slower backend takes its place; the results are the same.",
        RuntimeWarning,
        stacklevel=level,  # point at the line that called into the library
    )


def checked(backend: str | None) -> str | None:
    """Return ``backend`` if it names a backend or is None.

    Raises:
        TypeError, ValueError: it does not.
    """
    if backend is None or (isinstance(backend, str) and backend in BACKENDS):
        return backend
    listed = ", ".join(repr(name) for name in BACKENDS)
    error = ValueError if isinstance(backend, str) else TypeError
    raise error(f"backend must be one of {listed}, or None for the best that can serve, got {backend!r}")


def wanted(backend: str | None) -> str | None:
    """Return the backend that the call requests, or else the innermost block; None if neither does."""
    return checked(backend) if backend is not None or not _ambient.names else _ambient.names[-1]
