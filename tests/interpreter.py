"""A quicker interpreter of Triton's kernels, for the tests."""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def quicken(check_overflow: bool) -> None:
    """Let Triton's interpreter skip repetitions that take most of its time, for the rest of the process.

    It replaces the functions of ``triton.language`` at each launch, and again at each call of a device function. Once
    for each module of device functions is enough: a launch restores only what it replaced itself. The interpreter also
    computes each sum, difference and product of integers a second time, to detect an overflow.

    Args:
        check_overflow: whether to keep the checks for overflow.
    """
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    function = interpreter.InterpretedFunction
    if "_patch_lang" in function.__call__.__code__.co_names:  # as in Triton 3.5 to 3.8
        patched: set[str] = set()

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.fn.__module__ not in patched:
                interpreter._patch_lang(self.fn)
                patched.add(self.fn.__module__)
            return self.rewrite()(*args, **kwargs)

        function.__call__ = call
    if not check_overflow:
        interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
