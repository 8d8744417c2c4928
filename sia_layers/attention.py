r"""Self-Information Attention: gate a feature map by the self-information I of its pixels.

::

    spatial   y = x * (1 + sigmoid(I))
    channel   "excite": y = y * sigmoid(W2 relu(W1 mean_{i,j} I))
              "mean":   y = y * (1 + mean_{i,j} -log(exp(-I) + 0.1))

Sun et al., "An Information Theoretic Approach for Attention-Driven Face Forgery Detection" (ECCV 2022); for I see
:mod:`sia_layers.functional`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from sia_layers._keywords import refuse_unknown
from sia_layers._modules import Unscriptable, matrix_of, untouched
from sia_layers.kernels import backends, ops
from sia_layers.kernels.options import CHANNEL_MEANS, Options, as_bool, as_choice, as_float, as_int, check_map


class SelfInformation(Unscriptable):
    """Self-information of a feature map: :func:`sia_layers.self_information` as a module, without parameters.

    Args:
        kernel_size: as all that follow, see :func:`sia_layers.self_information`.
        bandwidth: factor on the bandwidth.
        adaptive: measure the bandwidth of every channel.
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number of following channels to compare with.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window holds beyond the border.
        backend: one of :func:`sia_layers.available_backends`; None for the best that can serve.

    Shape:
        (N, C, H, W) to (N, C, H, W), in nats.

    Example:
        >>> SelfInformation(kernel_size=5, bandwidth=0.5)
        SelfInformation(kernel_size=5, bandwidth=0.5)
        >>> SelfInformation()(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    @refuse_unknown
    def __init__(
        self,
        kernel_size: int = 3,
        *,
        bandwidth: float = 1.0,
        adaptive: bool = True,
        estimator: str = "kde",
        inter_channels: int = 5,
        inter_weight: float = 0.5,
        padding_mode: str = "exclude",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.options = Options.checked(
            kernel_size,
            bandwidth=bandwidth,
            adaptive=adaptive,
            estimator=estimator,
            inter_channels=inter_channels,
            inter_weight=inter_weight,
            padding_mode=padding_mode,
        )
        self.backend = backends.checked(backend)

    def forward(self, x: Tensor) -> Tensor:
        """Self-information of every pixel."""
        return ops.self_information(x, self.options, self.backend)

    def extra_repr(self) -> str:
        """The kernel size, and what is not as by default."""
        return _listed(_options_repr(self.options), backend=self.backend)


class SIAttention(Unscriptable):
    """Self-Information Attention: gate a feature map in space and over its channels.

    It can stand wherever timm takes an attention layer (``block_args=dict(attn_layer=SIAttention)`` of a resnet,
    ``attn_layer`` of byobnet and nfnet, ``se_layer`` of efficientnet), as can a ``functools.partial`` of it.

    Args:
        channels: channels C of the feature map.
        kernel_size: side K of the window of the self-information; like the six that follow, see
            :func:`sia_layers.self_information`.
        bandwidth: factor on the bandwidth.
        adaptive: measure the bandwidth of every channel.
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number of following channels to compare with.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window holds beyond the border.
        spatial: gate every pixel by 1 + sigmoid(I), between 1 and 2.
        channel: gate of the channels: ``"excite"`` is learnt, from the mean of I over each channel; ``"mean"``
            has no parameters; None leaves it off.
        rd_ratio: width of the hidden layer of ``"excite"`` over ``channels``.
        rd_channels: that width itself; goes before ``rd_ratio``.
        rd_divisor: the width becomes a multiple of it, unless ``rd_channels`` is given.
        act_layer: class of the hidden layer's activation.
        gate_layer: class of the activation that gives the channel gate.
        detach: let no gradient flow through I, as published. If False, all of it does.
        gain: None for the gated map itself. A number makes a learnable one, the parameter ``gain`` of shape (1,), that
            starts there: y = x + gain (SIA(x) - x). With 0.0 a layer starts as the identity and still learns.
        backend: one of :func:`sia_layers.available_backends`; None for the best that can serve.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        (N, C, H, W) to (N, C, H, W), in the dtype and memory format of the input.

    Raises:
        TypeError, ValueError: an argument is unknown, of the wrong type or out of its range.

    Example:
        >>> layer = SIAttention(32, kernel_size=3, gain=0.0)
        >>> layer
        SIAttention(
          channels=32, kernel_size=3, channel='excite', gain=0.0
          (fc1): Conv2d(32, 2, kernel_size=(1, 1), stride=(1, 1), bias=False)
          (act): ReLU()
          (fc2): Conv2d(2, 32, kernel_size=(1, 1), stride=(1, 1), bias=False)
          (gate): Sigmoid()
        )
        >>> x = torch.rand(2, 32, 16, 16)
        >>> torch.equal(layer(x), x)
        True
    """

    gain: nn.Parameter | None

    @refuse_unknown
    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        bandwidth: float = 1.0,
        adaptive: bool = True,
        estimator: str = "kde",
        inter_channels: int = 5,
        inter_weight: float = 0.5,
        padding_mode: str = "exclude",
        spatial: bool = True,
        channel: str | None = "excite",
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        detach: bool = True,
        gain: float | None = None,
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = as_positive("channels", channels)
        self.options = Options.checked(
            kernel_size,
            bandwidth=bandwidth,
            adaptive=adaptive,
            estimator=estimator,
            inter_channels=inter_channels,
            inter_weight=inter_weight,
            padding_mode=padding_mode,
        )
        self.spatial = as_bool("spatial", spatial)
        self.channel = None if channel is None else as_choice("channel", channel, CHANNEL_MEANS)
        if not self.spatial and self.channel is None:
            raise ValueError("spatial=False with channel=None leaves nothing to gate; switch one of the gates on")
        self.detach = as_bool("detach", detach)
        self.backend = backends.checked(backend)
        hidden = hidden_channels(self.channels, rd_ratio, rd_channels, rd_divisor)
        if self.channel == "excite":
            # Convolutions, as timm's own: the way its models initialise a Linear layer presumes a bias.
            self.fc1 = nn.Conv2d(self.channels, hidden, 1, bias=False, device=device, dtype=dtype)
            self.act = _made("act_layer", act_layer)
            self.fc2 = nn.Conv2d(hidden, self.channels, 1, bias=False, device=device, dtype=dtype)
            self.gate = _made("gate_layer", gate_layer)
        self.initial_gain = None if gain is None else as_float("gain", gain)
        if self.initial_gain is None:
            self.register_parameter("gain", None)
        else:
            # Of shape (1,): FSDP takes no parameter without dimensions.
            self.gain = nn.Parameter(torch.full((1,), self.initial_gain, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Initialise the parameters anew: the gain to its start, the rest as torch's convolutions."""
        if self.channel == "excite":
            self.fc1.reset_parameters()
            self.fc2.reset_parameters()
        if self.gain is not None and self.initial_gain is not None:
            nn.init.constant_(self.gain, self.initial_gain)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        saved = state_dict.get(f"{prefix}gain")
        if isinstance(saved, Tensor) and saved.dim() == 0:  # a checkpoint from when the gain had no dimensions
            state_dict[f"{prefix}gain"] = saved.detach().reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def _is_hf_initialized(self) -> bool:
        """Whether transformers has initialised this module, which it asks and says under this name."""
        return bool(self.__dict__.get("_initialized_for_hf", False))

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        # from_pretrained leaves what a checkpoint lacks uninitialised; what it has loaded bears the same mark.
        gain = self._parameters.get("gain")
        if value and gain is not None and not gain.is_meta and not getattr(gain, "_is_hf_initialized", False):
            with torch.no_grad():
                gain.fill_(self.initial_gain or 0.0)
        self.__dict__["_initialized_for_hf"] = value

    def forward(self, x: Tensor, aggregate: Tensor | None = None) -> Tensor:
        """Gate a feature map.

        Args:
            x: feature map (N, C, H, W).
            aggregate: what :class:`SIAggregation` made of earlier maps, of the shape of ``x``; it is added before
                all else: y = SIA(x + a), and with a gain y = x + gain (SIA(x + a) - x).

        Returns:
            The gated map, of the shape, dtype and memory format of ``x``.

        Raises:
            TypeError, ValueError: ``x`` or ``aggregate`` is no floating map of the right shape.
        """
        source = self._source(x, aggregate)
        # No parameter comes before I: it is needed only for the gradient of the map. (A graph for others holds the
        # same operations whether or not it is to learn.)
        learns = source.requires_grad and torch.is_grad_enabled()
        # Half the range of float16 is too little for x (1 + sigmoid(I)), where a gain of 0 must give x back.
        overflows = source.dtype == torch.float16 and self.gain is not None
        if ops.spelt_out() or learns or overflows:
            return self._attend(source, x)[0]
        return self._infer(source, x)

    def attend(self, x: Tensor, aggregate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gate a feature map as :meth:`forward` does, and return the self-information that gated it as well.

        Returns:
            The gated map and I, in nats, each of the shape, dtype and memory format of ``x``. I has a gradient
            unless ``detach`` is set.
        """
        return self._attend(self._source(x, aggregate), x)

    def _attend(self, source: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        info = ops.self_information(source.detach() if self.detach else source, self.options, self.backend)
        mean = None if self.channel is None else ops.channel_mean(info, self.channel, self.backend)
        return self._gated(source, info if self.spatial else None, mean, base), info

    def _infer(self, source: Tensor, base: Tensor) -> Tensor:
        gated, mean = ops.gate_and_mean(source, self.options, self.spatial, self.channel or "", self.backend)
        return self._gated(gated if self.spatial else source, None, mean, base)

    def _source(self, x: Tensor, aggregate: Tensor | None) -> Tensor:
        """The map that is gated, once all is known to be right."""
        check_map(x)
        if not ops.tracing() and x.shape[1] != self.channels:
            raise ValueError(
                f"x must have {self.channels} channels, as this SIAttention was made with, got shape {tuple(x.shape)}"
            )
        if aggregate is None:
            return x
        check_map(aggregate, "aggregate")
        if not ops.tracing() and aggregate.shape != x.shape:
            raise ValueError(
                f"aggregate must be of the shape of x, {tuple(x.shape)}, got {tuple(aggregate.shape)}; "
                "SIAggregation makes one when given the size of x"
            )
        return x + aggregate.to(x.dtype)

    def _gated(self, source: Tensor, info: Tensor | None, mean: Tensor | None, base: Tensor) -> Tensor:
        """Apply what is left to apply of the spatial gate, the channel gate and the gain."""
        channel_gate = None
        if self.channel == "mean" and mean is not None:
            channel_gate = 1 + mean
        elif self.channel == "excite" and mean is not None:
            channel_gate = self._excited(mean)
        gain = self.gain
        if info is None and channel_gate is None and gain is None:
            return source
        return ops.gate(source, info, channel_gate, gain, None if gain is None else base, self.backend)

    def _excited(self, mean: Tensor) -> Tensor:
        """The learnt channel gate (N, C) of the channels' means."""
        # Not self.fc1 and so on, which takes a microsecond each.
        fc1, act, fc2, gate = (cast(nn.Module, self._modules[name]) for name in ("fc1", "act", "fc2", "gate"))
        first, second = matrix_of(fc1), matrix_of(fc2)
        if first is None or second is None or not (untouched(act, nn.ReLU) and untouched(gate, nn.Sigmoid)):
            return gate(fc2(act(fc1(mean.to(self.fc1.weight.dtype)[..., None, None])))).flatten(1)  # type: ignore[no-any-return]
        return ((mean.to(first.dtype) @ first.t()).relu() @ second.t()).sigmoid()  # a third of the modules' time

    def extra_repr(self) -> str:
        """The channels, the gates, and what is not as by default."""
        return _listed(
            f"channels={self.channels}, {_options_repr(self.options)}, channel={self.channel!r}",
            spatial=None if self.spatial else False,
            detach=None if self.detach else False,
            gain=self.initial_gain,
            backend=self.backend,
        )


def hidden_channels(channels: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int) -> int:
    """Width of the hidden layer, by timm's rule: the multiple of the divisor next to ``channels * rd_ratio``."""
    ratio, divisor = as_float("rd_ratio", rd_ratio), as_positive("rd_divisor", rd_divisor)
    if not ratio > 0:
        raise ValueError(f"rd_ratio must be greater than 0, got {ratio}")
    if rd_channels is not None:
        return as_positive("rd_channels", rd_channels)
    return max(divisor, int(channels * ratio + divisor / 2) // divisor * divisor)


def as_positive(name: str, value: int) -> int:
    """The value, if it is an int of 1 or more."""
    number = as_int(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _made(name: str, layer: Callable[[], nn.Module]) -> nn.Module:
    if not callable(layer):
        raise TypeError(f"{name} must be a class of modules, such as torch.nn.ReLU, got {layer!r}")
    return layer()


def _options_repr(options: Options) -> str:
    changed = [
        f"{name}={value!r}"
        for name, value in options._asdict().items()
        if name == "kernel_size" or value != Options._field_defaults[name]
    ]
    return ", ".join(changed)


def _listed(head: str, **values: object) -> str:
    return ", ".join([head, *(f"{name}={value!r}" for name, value in values.items() if value is not None)])
