r"""Self-information of feature maps, as functions.

A pixel that is improbable given its neighbourhood carries information. With x a feature map, :math:`\Omega` the
K x K window around a pixel and S the number of neighbouring channels, the probability of a pixel is estimated
twice with a Gaussian kernel, among its neighbours and among the channels at its place::

    I_intra[n,k,i,j] = -log( 1/|Omega| * sum_{(p,q) in Omega} exp(-(x[n,k,i,j] - x[n,k,i+p,j+q])^2 / 2h^2) )
    I_inter[n,k,i,j] = -log( 1/(S+1) * sum_{s=0..S} exp(-(x[n,k,i,j] - x[n,(k+s) mod C,i,j])^2 / 2h'^2) )
    I                = I_intra + inter_weight * I_inter

The method is that of Sun et al., "An Information Theoretic Approach for Attention-Driven Face Forgery Detection"
(ECCV 2022). Its supplement points to the definition of I and does not print it; the kernel density estimate over
a neighbourhood is the reading that this line of work suggests (Shi et al., "Informative Dropout", ICML 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sia_layers.kernels import ops
from sia_layers.kernels.options import Options, as_choice

REDUCTIONS = ("mean", "sum")


def self_information(
    x: Tensor,
    kernel_size: int = 3,
    *,
    bandwidth: float = 1.0,
    adaptive: bool = True,
    estimator: str = "kde",
    inter_channels: int = 5,
    inter_weight: float = 0.5,
    padding_mode: str = "exclude",
    backend: str | None = None,
) -> Tensor:
    r"""Self-information of every pixel in every channel of a feature map, in nats.

    With ``estimator="kde"`` it is as the head of this module says: at least 0, at most
    :math:`\log K^2` and ``inter_weight`` times :math:`\log(S + 1)`, and 0 where the map is constant. The constant
    :math:`\log(h \sqrt{2\pi})` is left out. With ``estimator="distance"`` it is the distance of a pixel from the
    sum of its neighbourhood, over the mean distance in its sample::

        d = |K^2 x[k] - sum_Omega x[k]| + inter_weight * |S x[k] - sum_{s=1..S} x[(k+s) mod C]|
        I = d / (2 b^2 mean_{k,i,j}(d))

    A sample's result never depends on the others in its batch.

    Args:
        x: feature map (N, C, H, W) of dtype float64, float32, bfloat16 or float16, in any strides.
        kernel_size: side K of the square window in pixels, odd; 1 leaves the channels alone.
        bandwidth: factor b on the bandwidth h of the Gaussian kernel: a smaller one tells finer differences apart.
        adaptive: measure the bandwidth of every channel, h^2 = b^2 times the mean squared difference of
            neighbours, so that I is the same for x and a x + c; it is a constant for the gradient. For
            "distance", divide by the mean. If False, h = b in the units of ``x`` (and I = d / 2b^2).
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number S of following channels that a channel is compared with, cyclically; 0 switches
            that term off, C or more means C - 1.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window holds beyond the border: ``"exclude"`` (nothing, it shrinks),
            ``"zeros"``, ``"replicate"`` or ``"reflect"``.
        backend: one of :func:`sia_layers.available_backends`; None for the best that can serve.

    Returns:
        I (N, C, H, W), in the dtype and memory format of ``x``. Where the map is not finite, so is I, in the
        windows that hold it.

    Raises:
        TypeError: an argument is of the wrong type, or ``x`` of a dtype that is not floating.
        ValueError: an argument is out of its range, or ``x`` is not of four dimensions, or is smaller than a
            reflection needs.
        RuntimeError: the backend that was asked for cannot serve.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 1, 5, 5)
        >>> x[0, 0, 2, 2] = 1.0
        >>> info = self_information(x, kernel_size=3)
        >>> tuple(info.shape), bool(info[0, 0, 2, 2] == info.max()), float(info[0, 0, 0, 0])
        ((1, 1, 5, 5), True, 0.0)
    """
    options = Options.checked(
        kernel_size,
        bandwidth=bandwidth,
        adaptive=adaptive,
        estimator=estimator,
        inter_channels=inter_channels,
        inter_weight=inter_weight,
        padding_mode=padding_mode,
    )
    return ops.self_information(x, options, backend)


def average_self_information(
    x: Tensor,
    kernel_size: int = 3,
    *,
    bandwidth: float = 1.0,
    adaptive: bool = True,
    estimator: str = "kde",
    inter_channels: int = 5,
    inter_weight: float = 0.5,
    padding_mode: str = "exclude",
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Average self-information of each sample's feature map, in nats: one number for a layer.

    Equation 1 of the supplement of Sun et al. (ECCV 2022)::

        I_avg[n] = sum_{k=1..C} mean_{i,j} I[n,k,i,j]

    That is ``reduction="sum"``. The values in its Table 4 are of the size of a mean over the channels, so
    ``reduction="mean"``, the default, divides by C; it also compares layers of different widths.

    Args:
        x: feature map (N, C, H, W), as for :func:`self_information`, as are the arguments not listed here.
        kernel_size: side K of the window in pixels.
        bandwidth: factor on the bandwidth.
        adaptive: measure the bandwidth of every channel.
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number S of following channels to compare with.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window holds beyond the border.
        reduction: over the channels, ``"mean"`` or ``"sum"``.
        backend: one of :func:`sia_layers.available_backends`; None for the best that can serve.

    Returns:
        I_avg (N,), in the dtype of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`self_information`.

    Example:
        >>> import torch
        >>> average_self_information(torch.ones(2, 3, 8, 8))
        tensor([0., 0.])
    """
    as_choice("reduction", reduction, REDUCTIONS)
    options = Options.checked(
        kernel_size,
        bandwidth=bandwidth,
        adaptive=adaptive,
        estimator=estimator,
        inter_channels=inter_channels,
        inter_weight=inter_weight,
        padding_mode=padding_mode,
    )
    options.check_input(x)
    if torch.is_grad_enabled() and x.requires_grad:
        mean = ops.channel_mean(ops.self_information(x, options, backend), "excite", backend)
    else:
        _, mean = ops.gate_and_mean(x, options, spatial=False, mean_kind="excite", backend=backend)
    return (mean.mean(1) if reduction == "mean" else mean.sum(1)).to(x.dtype)
