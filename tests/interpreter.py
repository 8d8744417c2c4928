"""A quicker interpreter of Triton's kernels, for the tests."""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def quicken() -> None:
    """Let Triton's interpreter skip repetitions that take two thirds of its time, for the rest of the process.

    It replaces the functions of ``triton.language`` at each launch, and again at each call of a device function. Once
    for each module of device functions is enough: a launch restores only what it replaced itself. The interpreter also
    computes each sum, difference and product of integers a second time, to detect an overflow; GPUs do not, and maps
    as small as those here cause none.
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
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
