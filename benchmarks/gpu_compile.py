"""Compile the Triton kernels for GPUs, without needing one, and count registers, spills and instructions.

The kernels, tiles and constants are those that the dispatch would launch for a map of a given shape, dtype and
layout. This needs Triton, whose wheel contains the assemblers, with TRITON_INTERPRET unset.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sia_layers.kernels.options import Options
from sia_layers.kernels.triton import dispatch
from sia_layers.kernels.triton.launch import Launch, for_target, interpreted, noted

NVIDIA_TARGETS: Final = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
AMD_TARGETS: Final = ("gfx90a", "gfx942", "gfx950", "gfx1100")
TARGETS: Final = NVIDIA_TARGETS + AMD_TARGETS

POINTERS: Final = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for one target.

    Attributes:
        name: name of the kernel.
        target: one of TARGETS.
        launch: the launch that the kernel is compiled for.
        num_warps: warps per program.
        warp_size: threads per warp.
        registers: vector registers per thread.
        spills: spilled registers per thread, including scalar ones.
        shared: bytes of shared memory per program.
        assembly: SASS, or AMD's assembly.
    """

    name: str
    target: str
    launch: Launch
    num_warps: int
    warp_size: int
    registers: int
    spills: int
    shared: int
    assembly: str

    @property
    def outputs_per_thread(self) -> float:
        """Elements of the tile divided by threads of the program."""
        return self.launch.elements / (self.num_warps * self.warp_size)

    @cached_property
    def instructions(self) -> Counter[str]:
        """Number of occurrences of each instruction in the code, by mnemonic (``MUFU.EX2``, ``v_exp_f32_e32``)."""
        pattern = r"^\s+([a-z]\w+)" if self.target.startswith("gfx") else SASS_INSTRUCTION
        return Counter(re.findall(pattern, self.assembly, re.MULTILINE))

    def count(self, pattern: str) -> int:
        """Count the instructions whose mnemonic starts with a match of the regular expression."""
        return sum(times for name, times in self.instructions.items() if re.match(pattern, name))

    @property
    def exponentials(self) -> float:
        """Exponentials in the code, per output; the body of a loop counts once."""
        packed = self.count("MUFU.EX2") + self.count("v_exp_f32")
        return packed / self.outputs_per_thread


SASS_INSTRUCTION: Final = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"


def gpu_target(name: str) -> GPUTarget:
    """Return Triton's target for one of TARGETS.

    Raises:
        ValueError: there is no such target.
    """
    if name not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
    if name in NVIDIA_TARGETS:
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)


def launches(
    options: Options | None = None,
    shape: Sequence[int] = (2, 32, 64, 64),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    functions: Sequence[str] = (
        "self_information",
        "gate_and_mean",
        "self_information_backward",
        "gate",
        "channel_mean",
    ),
) -> list[Launch]:
    """Return what the dispatch would launch for a map; "gate" and "channel_mean" include their backward passes."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(tuple(shape), dtype=dtype, device="meta").to(memory_format=memory_format)
    with noted() as found:
        for function in functions:
            _CALLS[function](x, Options() if options is None else options)
    return found


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Compile one kernel as it would be launched.

    Raises:
        ValueError: there is no such target.
        RuntimeError: TRITON_INTERPRET is set, which makes the kernels functions of the interpreter.
    """
    if interpreted():
        raise RuntimeError("kernels cannot be compiled while TRITON_INTERPRET is set; unset it and restart Python")
    gpu = gpu_target(target)
    kernel, arguments = launch.kernel.jit, for_target(launch.arguments, nvidia=gpu.backend == "cuda")
    signature = {item.name: _type(item.is_constexpr, arguments[item.name]) for item in kernel.params}
    constants = {name: arguments[name] for name, kind in signature.items() if kind == "constexpr"}
    options = launch.compile_options(nvidia=gpu.backend == "cuda")
    built = triton.compile(ASTSource(kernel, signature, constants), target=gpu, options=options)
    if gpu.backend == "cuda":
        registers, spills, assembly = _inspect_cubin(built.asm["cubin"])
    else:
        assembly = built.asm["amdgcn"]
        registers = _amd_figure(assembly, "vgpr_count")
        spills = _amd_figure(assembly, "vgpr_spill_count") + _amd_figure(assembly, "sgpr_spill_count")
    shared, name, num_warps = built.metadata.shared, launch.kernel.name, launch.num_warps
    return Compiled(name, target, launch, num_warps, gpu.warp_size, registers, spills, shared, assembly)


def _type(constant: bool, value: Any) -> str:
    """Return the type of an argument in a kernel's signature; nothing is specialised on its value."""
    if constant or value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _inspect_cubin(cubin: bytes) -> tuple[int, int, str]:
    """Return the registers, the spilled bytes in units of registers, and the SASS of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", str(path)]
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], -(-max(usage["STACK"], usage["LOCAL"]) // 4), text


def _amd_figure(assembly: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s*(\d+)", assembly)
    if found is None:
        raise RuntimeError(f"the assembly that Triton produced has no .{name}; is it for an AMD target?")
    return int(found.group(1))


def _self_information(x: Tensor, options: Options) -> None:
    dispatch.self_information(x, options)


def _gate_and_mean(x: Tensor, options: Options) -> None:
    dispatch.gate_and_mean(x, options, True, "excite")


def _self_information_backward(x: Tensor, options: Options) -> None:
    scale = x.new_empty(options.scale_shape(x), dtype=torch.float32)
    dispatch.self_information_backward(x, x, scale, options)


def _gate(x: Tensor, options: Options) -> None:
    channel_gate, gain = x.new_empty(x.shape[:2]), x.new_empty(())
    dispatch.gate(x, x, channel_gate, gain, None)
    dispatch.gate_backward(x, x, x, channel_gate, gain, None, True)


def _channel_mean(x: Tensor, options: Options) -> None:
    mean = dispatch.channel_mean(x, "mean")
    dispatch.channel_mean_backward(mean, x, "mean")


_CALLS: Final[dict[str, Callable[[Tensor, Options], None]]] = {
    "self_information": _self_information,
    "gate_and_mean": _gate_and_mean,
    "self_information_backward": _self_information_backward,
    "gate": _gate,
    "channel_mean": _channel_mean,
}
