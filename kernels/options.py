"""The options of the self-information, and the checks of arguments."""

from __future__ import annotations

import math
import operator
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

ESTIMATORS: Final = ("kde", "distance")
PADDING_MODES: Final = ("exclude", "zeros", "replicate", "reflect")
CHANNEL_MEANS: Final = ("excite", "mean")  # kinds of channel mean: see ``reference.channel_mean``
LARGEST_SCALE: Final = 1e38
LARGEST: Final = 1e18  # of the bandwidth and the weight: in float32 neither a square nor a product overflows
DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Options(NamedTuple):
    """The options of the self-information, the same in every function, module and kernel.

    Attributes:
        kernel_size: side K of the square window, odd; 1 turns the intra-channel term off.
        bandwidth: factor b on the bandwidth of the Gaussian kernel.
        adaptive: measure the bandwidth of each map (the root mean square difference between neighbours); if False,
            ``bandwidth`` is the bandwidth itself, in the units of the input.
        estimator: ``"kde"`` (kernel density, the default) or ``"distance"`` (normalised distance from the mean of the
            window).
        inter_channels: number S of following channels, cyclically, with which the inter-channel term compares each
            channel; 0 turns the term off; C or more means C - 1.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window sees beyond the border: ``"exclude"`` (nothing; the window shrinks),
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
        """Radius R of the window: K = 2R + 1."""
        return self.kernel_size // 2

    # A method, because torch.compile of 2.9 cannot compute with a property of a named tuple.
    def fixed_scale(self) -> float:
        """Return 1 / 2b^2, clamped to the range of float32."""
        return min(0.5 / self.bandwidth / self.bandwidth, LARGEST_SCALE)

    def neighbours(self, channels: int) -> int:
        """Return how many channels the inter-channel term compares each of ``channels`` channels with."""
        return max(0, min(self.inter_channels, channels - 1))

    def scale_shape(self, x: Tensor) -> tuple[int, int, int]:
        """Return the shape of the scale of a map (N, C, H, W).

        It is (2, N, C) for "kde", the intra-channel row and then the inter-channel row, and (1, N, 1) for "distance".
        """
        return (1, x.shape[0], 1) if self.estimator == "distance" else (2, x.shape[0], x.shape[1])

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
        """Return the options that a caller's arguments give.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range; the message names it and says what was expected.
        """
        kernel_size = as_int("kernel_size", kernel_size)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be a positive odd number (1, 3, 5, ...), got {kernel_size}")
        bandwidth = as_float("bandwidth", bandwidth)
        if not bandwidth > 0:
            raise ValueError(f"bandwidth must be greater than 0, got {bandwidth}")
        inter_weight = as_float("inter_weight", inter_weight)
        for name, value in (("bandwidth", bandwidth), ("inter_weight", inter_weight)):
            if abs(value) > LARGEST:
                raise ValueError(f"{name} must be at most {LARGEST:g} in magnitude, got {value}")
        inter_channels = as_int("inter_channels", inter_channels)
        if inter_channels < 0:
            raise ValueError(f"inter_channels must be 0 (off) or more, got {inter_channels}")
        return cls(
            kernel_size,
            bandwidth,
            as_bool("adaptive", adaptive),
            as_choice("estimator", estimator, ESTIMATORS),
            inter_channels,
            inter_weight,
            as_choice("padding_mode", padding_mode, PADDING_MODES),
        )

    def check_input(self, x: Tensor) -> None:
        """Check that ``x`` is a floating-point map (N, C, H, W), and large enough for reflection.

        Raises:
            TypeError: ``x`` is not a tensor, or not floating-point.
            ValueError: ``x`` does not have four dimensions, or reflection would go past the opposite border.
        """
        check_map(x)
        self.check_size(x)

    def check_size(self, x: Tensor) -> None:
        """Check that a map is large enough for reflection; raise ValueError otherwise."""
        if self.padding_mode != "reflect":
            return
        height, width, radius = x.shape[2], x.shape[3], self.radius
        if radius and (radius >= height or radius >= width):
            raise ValueError(
                f"padding_mode='reflect' with kernel_size={self.kernel_size} needs a map larger than {radius} "
                f"pixels each way, got {height}x{width}; use padding_mode='exclude' or a smaller kernel_size"
            )


def check_map(x: Tensor, name: str = "x") -> None:
    """Check that ``x`` is a floating-point tensor (N, C, H, W).

    Raises:
        TypeError: ``x`` is not a tensor, or not floating-point.
        ValueError: ``x`` does not have four dimensions.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(
            f"{name} must have 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}; "
            "add missing dimensions with unsqueeze(0)"
        )
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name} must be of a floating dtype ({names}), got {x.dtype}; convert it with .float()")


def as_int(name: str, value: Any) -> int:
    """Return a value as an int; raise TypeError for a bool or anything that is not an integer."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got bool {value!r}")
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}") from None


def as_float(name: str, value: Any) -> float:
    """Return a value as a float; raise TypeError if it is not a number and ValueError if it is not finite."""
    # torch.compile of 2.9 cannot trace hasattr on a symbolic float.
    if isinstance(value, (bool, str)) or not (isinstance(value, float) or hasattr(value, "__float__")):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    number = float(value)
    if not -math.inf < number < math.inf:  # torch.compile cannot trace math.isfinite
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def as_bool(name: str, value: Any) -> bool:
    """Return a value that is a bool; raise TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__} {value!r}")
    return value


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return a value that is one of the choices; raise ValueError otherwise."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
    return cast(str, value)
