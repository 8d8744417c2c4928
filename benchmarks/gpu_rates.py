"""Published rates of GPUs, one for each architecture, with the source of each figure.

The rate of a pipe is in lanes (threads) per cycle and multiprocessor, which is NVIDIA's SM or AMD's compute unit.
Clocks are the boost clocks from which the vendors compute their own peak figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Device:
    """The rates of one GPU.

    Attributes:
        name: name of the product.
        target: its target in ``benchmarks.gpu_compile.TARGETS``.
        multiprocessors: number of SMs or compute units.
        clock: clock rate in Hz.
        special: exponentials, logarithms and reciprocals, in lanes per cycle and multiprocessor.
        float32: float32 operations, in the same unit; a packed instruction is two operations.
        alu: integer, logic, comparison and selection instructions (NVIDIA), or all vector instructions (AMD, where a
            special one takes as long as ``alu / special`` others, and a packed one as long as one).
        issue: vector and scalar instructions together; None if they are issued side by side.
        addresses: lanes of load and store instructions.
        cache_bytes: bytes per cycle and multiprocessor between registers and the first-level cache.
        memory: bytes per second.
        sources: the source of each figure.
    """

    name: str
    target: str
    multiprocessors: int
    clock: float
    special: int
    float32: int
    alu: int
    issue: int | None
    addresses: int
    cache_bytes: int
    memory: float
    sources: tuple[str, ...]

    @property
    def vendor(self) -> str:
        """The vendor, "nvidia" or "amd"."""
        return "amd" if self.target.startswith("gfx") else "nvidia"


THROUGHPUT: Final = (
    "NVIDIA, CUDA C++ Programming Guide, Arithmetic Instructions, table of the throughput of native arithmetic "
    "instructions (special 16; float32 64 on 8.0 and 128 from 8.6 on; integer add, compare, minimum, logic 64): "
    "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions"
)
PIPES: Final = (
    "NVIDIA, Nsight Compute, Profiling Guide, pipelines (which instruction goes down which pipe; four schedulers a "
    "multiprocessor, each of which issues one instruction of a warp a cycle): "
    "https://docs.nvidia.com/nsight-compute/ProfilingGuide/#metrics-decoder"
)
UNITS: Final = "32 load/store units an SM in the figure of the SM; 4 bytes each a cycle"

A100: Final = Device(
    "A100 SXM 80 GB", "sm_80", 108, 1.41e9, 16, 64, 64, 128, 32, 128, 2.039e12,
    (
        "NVIDIA A100 Tensor Core GPU Architecture (2020): 108 SMs, 1410 MHz, 64 float32 cores an SM, 19.5 TFLOPS; "
        + UNITS,
        "NVIDIA A100 datasheet: 2039 GB/s",
        THROUGHPUT,
        PIPES,
    ),
)  # fmt: skip
H100: Final = Device(
    "H100 SXM5", "sm_90", 132, 1.98e9, 16, 128, 64, 128, 32, 128, 3.35e12,
    (
        "NVIDIA H100 Tensor Core GPU Architecture (2022): 132 SMs, 128 float32 cores an SM; " + UNITS,
        "NVIDIA H100 datasheet: 67 TFLOPS of float32, that is 132 SMs of 128 cores at 1.98 GHz; 3.35 TB/s",
        THROUGHPUT,
        PIPES,
    ),
)  # fmt: skip
B200: Final = Device(
    "B200 (HGX)", "sm_100", 148, 1.98e9, 16, 128, 64, 128, 32, 128, 8e12,
    (
        "NVIDIA Blackwell datasheet (HGX B200): 75 TFLOPS of float32 a GPU, that is 148 SMs of 128 cores at 1.98 GHz; "
        "8 TB/s",
        "no paper shows the SM of sm_100: load/store units and cache as on Hopper are an assumption",
        THROUGHPUT,
        PIPES,
    ),
)  # fmt: skip
B300: Final = Device(
    "B300 (HGX)", "sm_103", 148, 1.98e9, 32, 128, 64, 128, 32, 128, 8e12,
    (
        "NVIDIA, Making Softmax More Efficient with NVIDIA Blackwell Ultra: twice the exponentials of Blackwell: "
        "https://developer.nvidia.com/blog/making-softmax-more-efficient-with-nvidia-blackwell-ultra/",
        "everything else as B200, which is an assumption; so is that logarithms and reciprocals are as fast",
        THROUGHPUT,
        PIPES,
    ),
)  # fmt: skip
MI300X: Final = Device(
    "MI300X", "gfx942", 304, 2.1e9, 16, 128, 64, None, 16, 64, 5.3e12,
    (
        "AMD Instinct MI300X data sheet: 304 compute units, 2100 MHz, 163.4 TFLOPS of float32 vector, that is 256 a "
        "cycle and compute unit, which takes packed instructions; 5.3 TB/s",
        "AMD CDNA 3 Architecture white paper: four SIMDs of 16 lanes; a 128-byte cache line",
        "AMD GCN timings, which AMD has not published for CDNA 3: special instructions and 32-bit integer products at "
        "a quarter of the rate: http://clrx.nativeboinc.org/wiki2/wiki/wiki/GcnTimings and LLVM's "
        "AMDGPUTargetTransformInfo (getQuarterRateInstrCost)",
        "GPUOpen, Understanding Memory Coalescing on GCN: 16 values of 32 bits a cycle to a compute unit: "
        "https://gpuopen.com/learn/gcn-memory-coalescing; that CDNA 3 does no better is an assumption",
    ),
)  # fmt: skip

DEVICES: Final = (A100, H100, B200, B300, MI300X)
