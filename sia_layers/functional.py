r"""The self-information of feature maps, as functions.

A pixel that is improbable given its neighbourhood carries information. Given a feature map x, the K x K window
:math:`\Omega` around a pixel, and S neighbouring channels, the probability of a pixel is estimated twice with a
Gaussian kernel: among its neighbours, and among the channels at its position::

    I_intra[n,k,i,j] = -log( 1/|Omega| * sum_{(p,q) in Omega} exp(-(x[n,k,i,j] - x[n,k,i+p,j+q])^2 / 2h^2) )
    I_inter[n,k,i,j] = -log( 1/(S+1) * sum_{s=0..S} exp(-(x[n,k,i,j] - x[n,(k+s) mod C,i,j])^2 / 2h'^2) )
    I                = I_intra + inter_weight * I_inter

The method is that of Sun et al., "An Information Theoretic Approach for Attention-Driven Face Forgery Detection"
(ECCV 2022). Its supplement refers to the definition of I but does not print it. The kernel density estimate over
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
    r"""Compute the self-information of every pixel in every channel of a feature map, in nats.

    With ``estimator="kde"`` it follows the formulas at the head of this module. It lies between 0 and
    :math:`\log K^2` plus ``inter_weight`` times :math:`\log(S + 1)`, and is 0 where the map is constant. The constant
    :math:`\log(h \sqrt{2\pi})` is left out. With ``estimator="distance"`` it is K^2 times the difference between a
    pixel and the mean of its window, plus the same across channels, divided by the mean of this over the sample::

        d = |K^2 x[k] - sum_Omega x[k]| + inter_weight * |S x[k] - sum_{s=1..S} x[(k+s) mod C]|
        I = d / (2 b^2 mean_{k,i,j}(d))

    The result for a sample never depends on the other samples in its batch.

    Args:
        x: feature map (N, C, H, W) of dtype float64, float32, bfloat16 or float16, with any strides.
        kernel_size: side K of the square window in pixels, odd; with 1, only the inter-channel term remains.
        bandwidth: factor b on the bandwidth h of the Gaussian kernel; a smaller one resolves finer differences.
        adaptive: whether to measure the bandwidth of every channel: h^2 is b^2 times the mean squared difference
            between neighbours, so that I is the same for x and a x + c. The backward pass treats h as a constant.
            For "distance", whether to divide by the mean. If False, h = b in the units of ``x`` (and I = d / 2b^2).
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number S of following channels, cyclically, with which each channel is compared; 0 turns
            the inter-channel term off, and C or more means C - 1.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window contains beyond the border: ``"exclude"`` (nothing; the window shrinks),
            ``"zeros"``, ``"replicate"`` or ``"reflect"``.
        backend: one of :func:`sia_layers.available_backends`; None for the best that can serve.

    Returns:
        I (N, C, H, W), in the dtype and memory format of ``x``. If a pixel is not finite, I is not finite in the
        windows that contain it.

    Raises:
        TypeError: an argument has the wrong type, or ``x`` is not floating-point.
        ValueError: an argument is out of range, or ``x`` does not have four dimensions or is too small for
            reflection.
        RuntimeError: the requested backend cannot serve.

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
    r"""Average the self-information of a feature map, in nats: one number per sample.

    Equation 1 of the supplement of Sun et al. (ECCV 2022)::

        I_avg[n] = sum_{k=1..C} mean_{i,j} I[n,k,i,j]

    That is ``reduction="sum"``. The values in its Table 4 have the magnitude of a mean over the channels, so
    ``reduction="mean"``, the default, divides by C, which also makes layers of different widths comparable.

    For details on the arguments, see :func:`self_information`.

    Args:
        x: feature map (N, C, H, W).
        kernel_size: side K of the window in pixels.
        bandwidth: factor on the bandwidth.
        adaptive: measure the bandwidth of every channel.
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number S of following channels to compare with.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window contains beyond the border.
        reduction: how to reduce over the channels, ``"mean"`` or ``"sum"``.
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
