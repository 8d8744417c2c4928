"""The items of a host's output: find those that could be maps, and replace one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sia_layers.kernels.private_torch import pytree

Item = int | str | None  # index or key of an item of a host's output; None for the output itself


def items_of(value: Any) -> list[tuple[Item, Tensor, int]]:
    """List the floating-point tensors that are items of an output: key, tensor, and index among all its leaves."""
    if isinstance(value, Tensor):
        return [(None, value, 0)] if value.is_floating_point() else []
    entries: Iterable[tuple[Item, Any]] = []
    if isinstance(value, Mapping) and not pytree.tree_is_leaf(value):  # which some mappings are to pytree
        entries = value.items()
    elif isinstance(value, (list, tuple)):
        entries = enumerate(value)
    found: list[tuple[Item, Tensor, int]] = []
    index = 0
    for key, entry in entries:
        floating = [leaf for leaf in pytree.tree_leaves(entry) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if isinstance(entry, Tensor) and floating:
            found.append((key, entry, index))
        index += len(floating)
    return found


def with_item(output: Any, item: int | str, value: Tensor) -> Any:
    """Return a tuple, list or mapping with one item replaced."""
    if isinstance(output, defaultdict):
        changed = output.copy()
        changed[item] = value
        return changed
    if isinstance(output, Mapping):
        return type(output)({**output, item: value})  # type: ignore[call-arg]
    items = [value if index == item else other for index, other in enumerate(output)]
    if isinstance(output, tuple):
        return type(output)(*items) if hasattr(output, "_fields") else tuple(items)
    return items


def described(value: Any) -> str:
    """Describe an output in words."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(described(entry) for entry in value)})"
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
