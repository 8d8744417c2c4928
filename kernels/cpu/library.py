"""Load the compiled library, call its functions, and choose its instruction set."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sia_layers.kernels.options import CHANNEL_MEANS, ESTIMATORS, PADDING_MODES, Options

MODULE: Final = "sia_layers.kernels.cpu._sia_cpu"
DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
MEAN_KINDS: Final = ("", *CHANNEL_MEANS)  # in the order of the C enumeration; "" for no mean
ABI: Final = 3  # SIA_ABI of csrc/sia_cpu.h, whose structures and functions this module mirrors
FOUR: Final = c_int64 * 4
LEVELS: Final = ("baseline", "avx2", "avx512")
LEVEL_VARIABLE: Final = "SIA_LAYERS_CPU_LEVEL"


class Map(ctypes.Structure):
    """``sia_map``: a tensor (N, C, H, W) of any strides, or no tensor if ``data`` is NULL."""

    _fields_ = [("data", c_void_p), ("stride", FOUR), ("dtype", c_int32)]

    @classmethod
    def of(cls, x: Tensor | None) -> Map:
        """Describe a tensor, or None."""
        return cls() if x is None else cls(x.data_ptr(), FOUR(*x.stride()), DTYPES.index(x.dtype))


class MapOptions(ctypes.Structure):
    """``sia_options``: the options of the self-information, and the size of the map."""

    _fields_ = [
        ("size", FOUR),
        ("kernel_size", c_int32),
        ("inter_channels", c_int32),
        ("padding_mode", c_int32),
        ("estimator", c_int32),
        ("adaptive", c_int32),
        ("inter_weight", c_float),
        ("fixed_scale", c_float),
        ("square_bandwidth", c_float),
        ("threads", c_int32),
        ("level", c_int32),
    ]

    @staticmethod
    def of(x: Tensor, options: Options) -> MapOptions:
        """Describe what to compute for a map, on as many threads as torch currently uses; not to be written to."""
        return _map_options(tuple(x.shape), options, torch.get_num_threads(), level())


@functools.lru_cache(maxsize=64)  # making one takes as long as a kernel on a small map
def _map_options(shape: tuple[int, ...], options: Options, threads: int, level: int) -> MapOptions:
    return MapOptions(
        FOUR(*shape),
        options.kernel_size,
        options.neighbours(shape[1]),
        PADDING_MODES.index(options.padding_mode),
        ESTIMATORS.index(options.estimator),
        options.adaptive,
        options.inter_weight,
        options.fixed_scale(),
        options.bandwidth**2,
        threads,
        level,
    )


class DenseMap(ctypes.Structure):
    """``sia_layout``: the size and memory format of a contiguous or channels_last map."""

    _fields_ = [
        ("samples", c_int64),
        ("channels", c_int64),
        ("pixels", c_int64),
        ("channels_last", c_int32),
        ("dtype", c_int32),
        ("threads", c_int32),
        ("level", c_int32),
    ]

    @classmethod
    def of(cls, x: Tensor) -> DenseMap:
        """Describe a contiguous or channels_last map."""
        n, c, h, w = x.shape
        return cls(n, c, h * w, not x.is_contiguous(), DTYPES.index(x.dtype), torch.get_num_threads(), level())


class Layer(ctypes.Structure):
    """``sia_layer``: the gates of a layer and what they need."""

    _fields_ = [
        ("first", c_void_p),
        ("second", c_void_p),
        ("gain", c_void_p),
        ("base", c_void_p),
        ("hidden", c_int64),
        ("spatial", c_int32),
        ("channel", c_int32),
        ("channels_last", c_int32),
    ]


ARGUMENTS: Final[dict[str, list[Any]]] = {
    "sia_forward": [POINTER(MapOptions), POINTER(Map), c_void_p, POINTER(Map), POINTER(Map), c_void_p, c_int32],
    "sia_backward": [POINTER(MapOptions), POINTER(Map), POINTER(Map), c_void_p, POINTER(Map)],
    "sia_channel_mean": [POINTER(DenseMap), c_void_p, c_void_p, c_int32],
    "sia_channel_mean_backward": [POINTER(DenseMap), c_void_p, c_void_p, c_void_p, c_int32],
    "sia_gate": [POINTER(DenseMap)] + [c_void_p] * 6,
    "sia_gate_backward": [POINTER(DenseMap)] + [c_void_p] * 11,
    "sia_attend": [POINTER(MapOptions), POINTER(Map), POINTER(Layer), c_void_p],
}


@functools.cache
def load() -> ctypes.CDLL | str:
    """Return the library, or why it cannot be loaded."""
    try:
        spec = importlib.util.find_spec(MODULE)
    except ImportError as error:
        return f"{MODULE} cannot be looked up: {error}"
    if spec is None or spec.origin is None:
        return "the C extension was not built: install a C compiler (gcc or clang), then reinstall sia-layers"
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        return f"the C extension {Path(spec.origin).name} does not load: {error}"
    if not _matches(library):
        return (
            f"the C extension {Path(spec.origin).name} was built from the sources of another version: "
            "reinstall sia-layers (pip install --force-reinstall, or pip install -e . in a checkout)"
        )
    for name, arguments in ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    _share_threads(library)
    return library


def _matches(library: ctypes.CDLL) -> bool:
    """Tell whether the library was built with the structures and functions that this module mirrors."""
    if not hasattr(library, "sia_abi"):  # libraries older than the ABI number
        return False
    sizes = (c_int32 * 4)()
    declared = [ctypes.sizeof(structure) for structure in (Map, MapOptions, DenseMap, Layer)]
    return bool(library.sia_abi(sizes) == ABI) and list(sizes) == declared


def _share_threads(library: ctypes.CDLL) -> None:
    """Run the kernels on torch's own OpenMP threads, if torch has GNU OpenMP's interface."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if sys.platform != "linux" or not path.exists():
        return
    try:
        parallel = ctypes.CDLL(str(path)).GOMP_parallel
    except (OSError, AttributeError):
        return
    library.sia_share_threads.argtypes = [c_void_p]
    library.sia_share_threads(ctypes.cast(parallel, c_void_p))


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library.

    Raises:
        RuntimeError: the library is not available.
        MemoryError: the function could not allocate its working memory.
    """
    library = load()
    if isinstance(library, str):
        raise RuntimeError(f"backend 'cpu' is not available: {library}")
    if getattr(library, name)(*arguments):
        raise MemoryError(f"{name} could not allocate its working memory")


_chosen_level: int | None = None


def level() -> int:
    """Return the index in ``LEVELS`` of the instruction set in use."""
    return best_level() if _chosen_level is None else _chosen_level


@functools.cache
def best_level() -> int:
    """Return the index in ``LEVELS`` of the machine's widest instruction set, or a lower one that the user set.

    Raises:
        ValueError: ``SIA_LAYERS_CPU_LEVEL`` names no instruction set.
    """
    library = load()
    best = 0 if isinstance(library, str) else int(library.sia_best_level())
    asked = os.environ.get(LEVEL_VARIABLE)
    if asked is None:
        return best
    if asked not in LEVELS:
        raise ValueError(f"{LEVEL_VARIABLE} must be one of {', '.join(LEVELS)}, got {asked!r}")
    return min(best, LEVELS.index(asked))


@contextmanager
def use_level(name: str) -> Iterator[None]:
    """Use one instruction set inside the block, for tests and benchmarks.

    Raises:
        ValueError: this machine does not have it.
    """
    global _chosen_level
    if LEVELS.index(name) > best_level():
        raise ValueError(f"this machine has no {name}; its widest instruction set is {LEVELS[best_level()]}")
    before, _chosen_level = _chosen_level, LEVELS.index(name)
    try:
        yield
    finally:
        _chosen_level = before


def address(x: Tensor | None) -> int | None:
    """Return the address of a tensor's data; None for None."""
    return None if x is None else x.data_ptr()
