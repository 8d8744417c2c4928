"""What a backend is: the functions and probes that each module in ``backends.BACKENDS`` provides."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sia_layers.kernels.options import Options


class Backend(Protocol):
    """A module that computes the self-information and its gates, forward and backward.

    The reference defines every result: another backend returns the same up to rounding, in the shape and dtype of
    the reference. Maps (N, C, H, W) come in any strides. A map that a backend other than the reference returns is
    channels_last if the map it is computed from is, and contiguous otherwise
    (:func:`sia_layers.kernels.memory_format.empty_map`), and never shares memory with an argument. Tensors have been
    checked before: shapes and devices match, and ``channel_gate`` and ``gain`` are of the arithmetic's dtype.

    A function is only called with a tensor that :meth:`refuses` accepts, in a process in which :meth:`unavailable`
    returns None.
    """

    def unavailable(self) -> str | None:
        """Return why the backend cannot run in this process; None if it can."""

    def refuses(self, x: Tensor) -> str | None:
        """Return why the backend cannot serve a tensor of this device, dtype and shape; None if it can."""

    def self_information(self, x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        """Return the self-information I, like ``x``, and the scale, of ``options.scale_shape(x)``, for the backward.

        See :func:`sia_layers.kernels.reference.self_information`.
        """

    def self_information_backward(self, grad: Tensor, x: Tensor, scale: Tensor, options: Options) -> Tensor:
        """Return the gradient of I for ``x``, given that for I and the scale of the forward."""

    def gate_and_mean(self, x: Tensor, options: Options, spatial: bool, mean_kind: str) -> tuple[Tensor, Tensor]:
        """Return the spatially gated map and the channel mean of I, without I itself; for inference.

        See :func:`sia_layers.kernels.reference.gate_and_mean`.
        """

    def channel_mean(self, info: Tensor, mean_kind: str) -> Tensor:
        """Return the mean over each plane that the channel gate is computed from, (N, C).

        See :func:`sia_layers.kernels.reference.channel_mean`.
        """

    def channel_mean_backward(self, grad: Tensor, info: Tensor, mean_kind: str) -> Tensor:
        """Return the gradient of the channel mean for ``info``, given that for the mean (N, C)."""

    def gate(
        self, x: Tensor, info: Tensor | None, channel_gate: Tensor | None, gain: Tensor | None, base: Tensor | None
    ) -> Tensor:
        """Return the gated map, like ``x``.

        See :func:`sia_layers.kernels.reference.gate`.
        """

    def gate_backward(
        self,
        grad: Tensor,
        x: Tensor,
        info: Tensor | None,
        channel_gate: Tensor | None,
        gain: Tensor | None,
        base: Tensor | None,
        info_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of the gated map for all five tensors; an empty tensor for each that is not needed.

        See :func:`sia_layers.kernels.reference.gate_backward`.
        """
