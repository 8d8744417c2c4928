"""What can be asked of the self-information, and the one place that checks it."""

from __future__ import annotations

import math
import operator
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

ESTIMATORS: Final = ("kde", "distance")
PADDING_MODES: Final = ("exclude", "zeros", "replicate", "reflect")
LARGEST_SCALE: Final = 1e38
DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Options(NamedTuple):
    """Options of the self-information, the same in every function, module and kernel.

    Attributes:
        kernel_size: side K of the square window, odd; 1 switches the intra-channel term off.
        bandwidth: factor b on the bandwidth of the Gaussian kernel.
        adaptive: measure the bandwidth on each map (the root mean square difference of
            neighbours); otherwise ``bandwidth`` is taken in the units of the input.
        estimator: ``"kde"`` (kernel density, the default) or ``"distance"`` (normalised
            distance from the window's mean).
        inter_channels: how many following channels S the inter-channel term compares with,
            cyclically; 0 switches it off; at least C means C - 1.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window sees beyond the border: ``"exclude"`` (nothing: it shrinks),
            ``"zeros"``, ``"replicate"`` or ``"reflect"``.
    """

    kernel_size: int = 3
    bandwidth: float = 1.0
    adaptive: bool = True
    estimator: str = "kde"
    inter_channels: int = 5
    inter_weight: float = 0.5
    padding_mode: str = "exclude"

    @property
    def radius(self) -> int:
        """Reach R of the window: K = 2R + 1."""
        return self.kernel_size // 2

    @property
    def fixed_scale(self) -> float:
        """1 / 2b^2, kept in float32's range."""
        return min(0.5 / self.bandwidth / self.bandwidth, LARGEST_SCALE)

    def neighbours(self, channels: int) -> int:
        """Channels that the inter-channel term really compares with, of a map with ``channels``."""
        return max(0, min(self.inter_channels, channels - 1))

    @classmethod
    def checked(
        cls,
        kernel_size: int = 3,
        *,
        bandwidth: float = 1.0,
        adaptive: bool = True,
        estimator: str = "kde",
        inter_channels: int = 5,
        inter_weight: float = 0.5,
        padding_mode: str = "exclude",
    ) -> Options:
        """Make options from a caller's arguments.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument is out of range; the message names it and what was expected.
        """
        kernel_size = as_int("kernel_size", kernel_size)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be a positive odd number (1, 3, 5, ...), got {kernel_size}")
        bandwidth = as_float("bandwidth", bandwidth)
        if not bandwidth > 0:
            raise ValueError(f"bandwidth must be greater than 0, got {bandwidth}")
        inter_channels = as_int("inter_channels", inter_channels)
        if inter_channels < 0:
            raise ValueError(f"inter_channels must be 0 (off) or more, got {inter_channels}")
        return cls(
            kernel_size,
            bandwidth,
            as_bool("adaptive", adaptive),
            as_choice("estimator", estimator, ESTIMATORS),
            inter_channels,
            as_float("inter_weight", inter_weight),
            as_choice("padding_mode", padding_mode, PADDING_MODES),
        )

    def check_input(self, x: Tensor) -> None:
        """Refuse what is no floating (N, C, H, W) map, or too small for reflection.

        Raises:
            TypeError: not a tensor, or not of a floating dtype.
            ValueError: not four dimensions, or reflection past the opposite border.
        """
        check_map(x)
        height, width, radius = x.shape[2], x.shape[3], self.radius
        if self.padding_mode == "reflect" and radius and (radius >= height or radius >= width):
            raise ValueError(
                f"padding_mode='reflect' with kernel_size={self.kernel_size} needs a map larger than {radius} "
                f"pixels each way, got {height}x{width}; use padding_mode='exclude' or a smaller kernel_size"
            )


def check_map(x: Tensor, name: str = "x") -> None:
    """Refuse what is no floating (N, C, H, W) tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(
            f"{name} must have 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}; "
            "add the missing ones with unsqueeze(0)"
        )
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name} must be of a floating dtype ({names}), got {x.dtype}; convert it with .float()")


def as_int(name: str, value: Any) -> int:
    """The value as an int; bool and anything with a fraction are refused."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got bool {value!r}")
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}") from None


def as_float(name: str, value: Any) -> float:
    """The value as a finite float."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    number = float(value)
    if not -math.inf < number < math.inf:  # what torch.compile can trace of math.isfinite
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def as_bool(name: str, value: Any) -> bool:
    """The value, if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__} {value!r}")
    return value


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """The value, if it is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
    return cast(str, value)
