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
from sia_layers._modules import Unscriptable, as_one_call, excite_weights, is_proxy
from sia_layers.kernels import backends, ops
from sia_layers.kernels.options import CHANNEL_MEANS, Options, as_bool, as_choice, as_float, as_int, check_map


class SelfInformation(Unscriptable):
    """Compute the self-information of a feature map: :func:`sia_layers.self_information` as a module.

    The module has no parameters. For details on the arguments, see :func:`sia_layers.self_information`.

    Args:
        kernel_size: side K of the window.
        bandwidth: factor on the bandwidth.
        adaptive: measure the bandwidth of every channel.
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number of following channels to compare with.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window contains beyond the border.
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
        """Compute the self-information (N, C, H, W) of every pixel of a map (N, C, H, W), in nats."""
        if is_proxy(x):
            return as_one_call(self, x)  # type: ignore[no-any-return]
        return ops.self_information(x, self.options, self.backend)

    def extra_repr(self) -> str:
        """List the kernel size and the other options that differ from their defaults."""
        return _listed(_options_repr(self.options), backend=self.backend)


class SIAttention(Unscriptable):
    """Self-Information Attention: gate a feature map in space and over its channels.

    timm takes it, or a ``functools.partial`` of it, wherever it takes an attention layer:
    ``block_args=dict(attn_layer=SIAttention)`` of resnet, ``attn_layer`` of byobnet and nfnet, ``se_layer`` of
    efficientnet.

    Args:
        channels: channels C of the feature map.
        kernel_size: side K of the window of the self-information; for details on this argument and the six that
            follow, see :func:`sia_layers.self_information`.
        bandwidth: factor on the bandwidth.
        adaptive: measure the bandwidth of every channel.
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number of following channels to compare with.
        inter_weight: weight of the inter-channel term.
        padding_mode: what the window contains beyond the border.
        spatial: whether to multiply every pixel by 1 + sigmoid(I), which is from 1.5 to 2 for ``inter_weight`` >= 0.
        channel: the channel gate: ``"excite"`` learns it from the mean of I over each channel; ``"mean"`` has no
            parameters; None turns it off.
        rd_ratio: ratio of the width of the hidden layer of ``"excite"`` to ``channels``.
        rd_channels: width of the hidden layer; takes precedence over ``rd_ratio``.
        rd_divisor: round the width to a multiple of this, unless ``rd_channels`` is given.
        act_layer: class of the activation of the hidden layer.
        gate_layer: class of the activation that produces the channel gate.
        detach: whether to block the gradient through I, as published. If False, the full gradient flows through I.
        gain: None to return the gated map itself. A number makes the gain learnable, as the parameter ``gain`` of
            shape (1,) that starts at this number: y = x + gain (SIA(x) - x). With 0.0 the layer starts as the
            identity and still learns.
        backend: one of :func:`sia_layers.available_backends`; None for the best that can serve.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        (N, C, H, W) to (N, C, H, W), in the dtype and memory format of the input.

    Raises:
        TypeError, ValueError: an argument is unknown, has the wrong type or is out of range.

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
        if self.options.kernel_size == 1 and 0 in (self.options.inter_channels, self.options.inter_weight):
            raise ValueError(
                "kernel_size=1 without an inter-channel term compares a pixel with nothing, so its self-information is "
                "0; set kernel_size=3, or inter_channels and inter_weight above 0"
            )
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
            # Of shape (1,), because FSDP takes no parameter without dimensions.
            self.gain = nn.Parameter(torch.full((1,), self.initial_gain, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Reinitialise the parameters: set the gain to its initial value, and the rest as torch's convolutions do."""
        if self.channel == "excite":
            self.fc1.reset_parameters()
            self.fc2.reset_parameters()
        if self.gain is not None and self.initial_gain is not None:
            nn.init.constant_(self.gain, self.initial_gain)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        saved = state_dict.get(f"{prefix}gain")
        if isinstance(saved, Tensor) and saved.dim() == 0:  # older checkpoints have a gain without dimensions
            state_dict[f"{prefix}gain"] = saved.detach().reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def _is_hf_initialized(self) -> bool:
        """Whether transformers has initialised this module; it reads and sets this attribute."""
        return bool(self.__dict__.get("_initialized_for_hf", False))

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        # from_pretrained leaves parameters that the checkpoint lacks uninitialised, and marks those that it has loaded.
        gain = self._parameters.get("gain")
        if value and gain is not None and not gain.is_meta and not getattr(gain, "_is_hf_initialized", False):
            with torch.no_grad():
                gain.fill_(self.initial_gain or 0.0)
        self.__dict__["_initialized_for_hf"] = value

    def forward(self, x: Tensor, aggregate: Tensor | None = None) -> Tensor:
        """Gate a feature map.

        Args:
            x: feature map (N, C, H, W).
            aggregate: the output a of :class:`SIAggregation` for earlier maps, of the shape of ``x``. It is added
                first: y = SIA(x + a), and with a gain y = x + gain (SIA(x + a) - x).

        Returns:
            The gated map, of the shape, dtype and memory format of ``x``.

        Raises:
            TypeError, ValueError: ``x`` or ``aggregate`` is not a floating-point map of the right shape.
        """
        if is_proxy(x):
            return as_one_call(self, x, aggregate)  # type: ignore[no-any-return]
        source = self._source(x, aggregate)
        # I depends on no parameter, so it has to be materialised only when x itself needs a gradient. (An exported
        # graph holds the same operations in either case.)
        learns = source.requires_grad and torch.is_grad_enabled()
        # In float16, x (1 + sigmoid(I)) overflows for x in the upper half of the range, but a gain of 0 must return x.
        overflows = source.dtype == torch.float16 and self.gain is not None
        if ops.inlined() or learns or overflows:
            return self._attend(source, x)[0]
        return self._infer(source, x)

    def attend(self, x: Tensor, aggregate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gate a feature map as :meth:`forward` does, and also return the self-information I that gated it.

        Returns:
            The gated map and I in nats, each with the shape, dtype and memory format of ``x``. I has a gradient
            unless ``detach`` is set.
        """
        return self._attend(self._source(x, aggregate), x)

    def _attend(self, source: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        info = ops.self_information(source.detach() if self.detach else source, self.options, self.backend)
        mean = None if self.channel is None else ops.channel_mean(info, self.channel, self.backend)
        return self._gated(source, info if self.spatial else None, mean, base), info

    def _infer(self, source: Tensor, base: Tensor) -> Tensor:
        self.options.check_size(source)
        gain, kind = self.gain, self.channel or ""
        excite = excite_weights(*self._excite_modules()) if kind == "excite" else None
        if kind != "excite" or excite is not None:
            y = ops.attend(source, base, self.options, self.spatial, kind, excite, gain, self.backend)
            if y is not None:
                return y
        gated, mean = ops.gate_and_mean(source, self.options, self.spatial, kind, self.backend)
        return self._gated(gated if self.spatial else source, None, mean, base)

    def _source(self, x: Tensor, aggregate: Tensor | None) -> Tensor:
        """Check the arguments and return the map to gate."""
        check_map(x)
        if not ops.tracing() and x.shape[1] != self.channels:
            raise ValueError(
                f"x must have {self.channels} channels, as this SIAttention was built for, got shape {tuple(x.shape)}"
            )
        if aggregate is None:
            return x
        check_map(aggregate, "aggregate")
        if not ops.tracing() and aggregate.shape != x.shape:
            raise ValueError(
                f"aggregate must be of the shape of x, {tuple(x.shape)}, got {tuple(aggregate.shape)}; "
                "call SIAggregation with the size of x"
            )
        return x + aggregate.to(x.dtype)

    def _gated(self, source: Tensor, info: Tensor | None, mean: Tensor | None, base: Tensor) -> Tensor:
        """Apply the gates and the gain that are still to be applied."""
        channel_gate, gain = self._channel_gate(mean), self.gain
        if info is None and channel_gate is None and gain is None:
            return source
        return ops.gate(source, info, channel_gate, gain, None if gain is None else base, self.backend)

    def _channel_gate(self, mean: Tensor | None) -> Tensor | None:
        """Compute the channel gate (N, C) from the channel means, if there is one."""
        if self.channel is None or mean is None:
            return None
        return self._excited(mean) if self.channel == "excite" else 1 + mean

    def _excited(self, mean: Tensor) -> Tensor:
        """Compute the learnt channel gate (N, C) from the channel means."""
        fc1, act, fc2, gate = modules = self._excite_modules()
        weights = excite_weights(*modules)
        if weights is None:
            return gate(fc2(act(fc1(mean.to(self.fc1.weight.dtype)[..., None, None])))).flatten(1)  # type: ignore[no-any-return]
        first, second = (weight.flatten(1) for weight in weights)
        return ((mean.to(first.dtype) @ first.t()).relu() @ second.t()).sigmoid()  # a third of the modules' time

    def _excite_modules(self) -> list[nn.Module]:
        # Not self.fc1 etc., because each attribute access takes a microsecond.
        return [cast(nn.Module, self._modules[name]) for name in ("fc1", "act", "fc2", "gate")]

    def extra_repr(self) -> str:
        """List the channels, the kernel size, the channel gate, and the options that differ from their defaults."""
        return _listed(
            f"channels={self.channels}, {_options_repr(self.options)}, channel={self.channel!r}",
            spatial=None if self.spatial else False,
            detach=None if self.detach else False,
            gain=self.initial_gain,
            backend=self.backend,
        )


def hidden_channels(channels: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int) -> int:
    """Return the width of the hidden layer by timm's rule: ``channels * rd_ratio`` rounded to a multiple of a divisor.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """
    ratio, divisor = as_float("rd_ratio", rd_ratio), as_positive("rd_divisor", rd_divisor)
    if not ratio > 0:
        raise ValueError(f"rd_ratio must be greater than 0, got {ratio}")
    if rd_channels is not None:
        return as_positive("rd_channels", rd_channels)
    return max(divisor, int(channels * ratio + divisor / 2) // divisor * divisor)


def as_positive(name: str, value: int) -> int:
    """Return a value that is an int of 1 or more; raise TypeError or ValueError otherwise."""
    number = as_int(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _made(name: str, layer: Callable[[], nn.Module]) -> nn.Module:
    refusal = f"{name} must be a class of modules, such as torch.nn.ReLU, got {layer!r}"
    if not callable(layer) or isinstance(layer, nn.Module):
        raise TypeError(refusal)
    try:
        made = layer()
    except TypeError as error:
        raise TypeError(f"{refusal}: {error}") from error
    if not isinstance(made, nn.Module):
        raise TypeError(refusal)
    return made


def _options_repr(options: Options) -> str:
    changed = [
        f"{name}={value!r}"
        for name, value in options._asdict().items()
        if name == "kernel_size" or value != Options._field_defaults[name]
    ]
    return ", ".join(changed)


def _listed(head: str, **values: object) -> str:
    return ", ".join([head, *(f"{name}={value!r}" for name, value in values.items() if value is not None)])
