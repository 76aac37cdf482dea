"""What CUDA kernels take of a multiprocessor: threads and shared memory from their source, registers and spills from nvcc.

No GPU is needed. Where nvcc is not installed, registers and spills are not known and say None.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

from ..compiler.children import ProgramError, program, run, safe_environment
from ..compiler.errors import NeaptideError
from ..compiler.scratch import scratch

MODE = "TVM_CUDA_COMPILE_MODE"
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\((\d+)(?:, *\d+)?\) )?(\w+)\([^)]*\) \{')
_SHARED = re.compile(r"__shared__ (?:alignas\(\d+\) )?(\w+) \w+((?:\[\d+\])+);")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SMEM = re.compile(r"(\d+) bytes smem")
_SIZES = {"char": 1, "uchar": 1, "int8_t": 1, "uint8_t": 1, "bool": 1, "half": 2, "short": 2, "double": 8, "int64_t": 8}


class CudaError(NeaptideError):
    """nvcc refused generated CUDA."""


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """One kernel. `threads`: of a block, None where not said; `shared`: bytes of a block; `registers`: of a thread; `spilled`: bytes
    of registers that a thread stores to and loads from memory. The last two None without nvcc.
    """

    kernel: str
    threads: int | None
    shared: int
    registers: int | None = None
    spilled: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def kernel_facts(source: str, arch: str) -> Mapping[str, KernelFacts]:
    """Facts by kernel of CUDA `source` as TVM writes it; nvcc compiles it for `arch`, such as "sm_90", where it is installed.

    Raises `CudaError` with nvcc's words when it refuses the source.
    """
    facts = source_facts(source)
    if nvcc_version() is None or not facts:
        return facts
    compiler = program("nvcc")
    assert compiler is not None  # it has told its version
    with scratch() as folder:
        (folder / "kernels.cu").write_text(source)
        command = [compiler, f"-arch={arch}", "-cubin", "-w", "-Xptxas", "-v", "-o", "kernels.cubin", "kernels.cu"]
        try:
            said = run(command, folder=folder, made=folder / "kernels.cubin")
        except ProgramError as error:
            raise CudaError(f"compiling generated CUDA for {arch} failed: {error}") from error
    return {**facts, **assembler_facts("".join(said), facts)}


def source_facts(source: str) -> dict[str, KernelFacts]:
    """Threads and shared memory by kernel, from the source alone."""
    found = list(_KERNEL.finditer(source))
    ends = [match.start() for match in found[1:]] + [len(source)]
    facts = {}
    for match, end in zip(found, ends, strict=True):
        arrays = _SHARED.findall(source, match.end(), end)
        shared = sum(_SIZES.get(dtype, 4) * prod(map(int, re.findall(r"\d+", extents))) for dtype, extents in arrays)
        facts[match[2]] = KernelFacts(match[2], int(match[1]) if match[1] else None, shared)
    return facts


def assembler_facts(said: str, facts: Mapping[str, KernelFacts]) -> dict[str, KernelFacts]:
    """`facts` of the kernels that `ptxas -v` speaks of in `said`, with its registers, spills and shared memory."""
    parts = _ENTRY.split(said)
    known = {}
    for kernel, words in zip(parts[1::2], parts[2::2], strict=True):
        used, spills, shared = _USED.search(words), _SPILLS.search(words), _SMEM.search(words)
        if kernel in facts and used and spills:
            known[kernel] = replace(
                facts[kernel],
                registers=int(used[1]),
                spilled=int(spills[1]) + int(spills[2]),
                shared=int(shared[1]) if shared else 0,
            )
    return known


@cache
def nvcc_version() -> str | None:
    """Version of the nvcc on the path; None where there is none."""
    compiler = program("nvcc")
    if compiler is None:
        return None
    found = re.search(r"V(\d[\d.]*)", run([compiler, "--version"]).output)
    if found is None:
        raise CudaError(f"{compiler} names no version when asked for --version; is it NVIDIA's compiler?")
    return found[1]


@contextmanager
def cuda_compiler() -> Iterator[str]:
    """Inside: TVM compiles CUDA for a GPU that is present with the compiler that this machine has; gives its name.

    `$TVM_CUDA_COMPILE_MODE` decides where it is set. TVM's own default, NVRTC, needs the package cuda-bindings; without it nvcc is taken.
    Raises `CudaError` where there is neither.
    """
    chosen = os.environ.get(MODE)
    if chosen is not None:
        with safe_environment():
            yield chosen
        return
    mode = "nvrtc" if _has_nvrtc() else "nvcc" if nvcc_version() else None
    if mode is None:
        raise CudaError("running CUDA needs a compiler: pip install cuda-bindings, or NVIDIA's toolkit with nvcc on the path")
    os.environ[MODE] = mode
    try:
        with safe_environment():
            yield mode
    finally:
        del os.environ[MODE]


def _has_nvrtc() -> bool:
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None
