"""The module that inject_sia adds to a host, and the hooks that run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sia_layers.aggregation import SIAggregation
from sia_layers.attention import SIAttention
from sia_layers.injection.layouts import Layout, grid_of
from sia_layers.injection.relay import Passed, Relay, is_proxy

CHILD = "sia"
RELAY = "_sia_relay"


class InjectedSIAttention(SIAttention):
    """Self-Information Attention at a site of a model, on the host's own layout, with the maps of earlier sites.

    Args:
        channels: of the host's output.
        layout: of the host's output.
        relay: shared by the sites of one model.
        position: of this site among them, from 0.
        earlier: channels of the earlier sites whose maps are aggregated here.
        hands_on: whether a later site takes this one's self-information.
        last: whether no site comes after this one.
        device: of the parameters.
        dtype: of the parameters.
        options: of :class:`sia_layers.SIAttention`.
    """

    def __init__(
        self,
        channels: int,
        layout: Layout,
        relay: Relay,
        position: int,
        earlier: Sequence[int],
        hands_on: bool,
        last: bool,
        device: torch.device,
        dtype: torch.dtype,
        **options: Any,
    ) -> None:
        super().__init__(channels, device=device, dtype=dtype, **options)
        self.layout, self.relay, self.position = layout, relay, position
        self.hands_on, self.last = hands_on, last
        self.aggregation = SIAggregation(earlier, channels, device=device, dtype=dtype) if earlier else None
        self.capture: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:  # type: ignore[override]
        """Gate the host's output.

        Args:
            x: in the host's layout.
            size: rows and columns of tokens, where the host was told them.
        """
        if is_proxy(x):  # torch.fx: one call in its graph, as of a layer of torch's own
            tracer = x.tracer  # type: ignore[attr-defined]
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})  # type: ignore[no-any-return]
        passed = self._passed()
        maps, prefix = self.layout.read(x, size or passed.grid)
        aggregate = None if self.aggregation is None else self._aggregated(passed, maps)
        if self.hands_on or self.capture is not None:
            gated, info = self.attend(maps, aggregate)
        else:
            gated, info = super().forward(maps, aggregate), None
        if self.capture is not None and info is not None:
            self.capture(info)
        output = self.layout.write(gated, prefix)
        if self.last:
            self.relay.leave(None, output)
        elif self.hands_on and info is not None:
            self.relay.leave(Passed(passed.grid, (*passed.maps, info)), output)
        return output

    def _passed(self) -> Passed:
        """What this forward pass has handed on so far."""
        if self.position == 0:  # a new pass: whatever another one left behind is gone
            passed = None if self.layout.kind != "NLC" else self.relay.take(0)
            return Passed(None if passed is None else passed.grid)
        return self.relay.take(0 if self.aggregation is None else self.position) or Passed()

    def _aggregated(self, passed: Passed, maps: Tensor) -> Tensor:
        assert self.aggregation is not None
        infos = passed.maps
        if len(infos) != self.position or infos[0].shape[0] != maps.shape[0]:
            raise RuntimeError(
                f"site {self.position} aggregates the maps of {self.position} earlier sites, which this forward pass "
                f"has not been through (it has {len(infos)}); run the model from its input on, checkpoint with "
                "use_reentrant=False, or inject with aggregate=False"
            )
        result: Tensor = self.aggregation(infos, size=maps.shape[2:])
        return result


def output_hook(host: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of a host whose output is gated."""
    attention = host._modules[CHILD]
    assert attention is not None
    size = next((value for value in inputs if is_size(value)), None)
    if isinstance(output, tuple):  # tokens and their grid
        return (attention(output[0], size=output[1] if is_size(output[1]) else size), *output[1:])
    return attention(output) if size is None else attention(output, size=size)


def input_hook(host: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Forward pre-hook of a host whose input is gated."""
    attention = host._modules[CHILD]
    assert attention is not None
    return (attention(inputs[0]), *inputs[1:])


def patch_hook(host: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """Forward hook of the module that makes the patches: note their grid for the sites."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(first, Tensor):  # torch.fx traces
        return
    relay: Relay = getattr(host, RELAY)
    passed = relay.take(0) or Passed()  # a site may lie before the patches
    relay.leave(passed._replace(grid=grid_of(host, inputs, output)), first)


def is_size(value: Any) -> bool:
    """Whether it is rows and columns, as some blocks are told beside their tokens."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(number, int) for number in value)
