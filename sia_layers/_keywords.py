"""Raise for unknown keyword arguments, with the nearest known name."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def refuse_unknown(
    function: Callable[Parameters, Result], also: Callable[..., object] | None = None
) -> Callable[Parameters, Result]:
    """Decorate a function so that an unknown keyword raises TypeError and names the nearest known one.

    This helps where keywords come from elsewhere, such as a configuration or ``functools.partial``, and typos hide.

    Args:
        function: the function.
        also: the function to which it passes its ``**keywords``.
    """
    parameters = [*inspect.signature(function).parameters.values()]
    parameters += [] if also is None else [*inspect.signature(also).parameters.values()]
    named = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    known = [name for name in dict.fromkeys(named) if name != "self"]
    owner = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for name in kwargs:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                advice = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(known)}"
                raise TypeError(f"{owner} has no argument {name!r}; {advice}")
        return function(*args, **kwargs)

    return checked
