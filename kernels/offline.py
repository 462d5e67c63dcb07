"""Ahead-of-time compilation with no GPU: what a kernel costs on sm_80 and sm_90, read from the machine code.

A launcher is run as it is, on tensors of the meta device, while Triton compiles for another machine and launches
nothing. So what is measured is what ships: the same launcher, configuration table and argument specialisation.
Needs a process of its own: one that is not interpreted, and whose Triton driver may be replaced.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.jit import INTERPRETED, triton

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}  # of one block, at most (CUDA programming guide, table 30)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled kernel takes of a streaming multiprocessor."""

    kernel: str
    launch: str  # which shipped launch of it
    arch: str
    num_warps: int
    num_registers: int  # per thread
    num_spills: int  # loads from and stores to local memory
    shared_bytes: int  # per block


class _Elsewhere:
    """A Triton driver of a GPU that is not there."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def resources(launches: Iterator[tuple[str, Callable[[], None]]], arch: str) -> Iterator[Resources]:
    """Compiles every kernel that the launches start, once for each set of compile-time arguments.

    Args:
        launches: (name, function that calls a launcher on meta tensors).
        arch: "sm_80" or "sm_90".
    """
    if INTERPRETED:
        raise RuntimeError("kernels are interpreted in this process; compile in one without TRITON_INTERPRET")
    for launch, run in launches:
        with _compiled_only(arch) as compiled:
            run()
        for kernel in {id(kernel): kernel for kernel in compiled}.values():
            num_registers, num_spills = _machine_code_costs(kernel.asm["cubin"])
            yield Resources(
                kernel.metadata.name, launch, arch, kernel.metadata.num_warps, num_registers, num_spills,
                kernel.metadata.shared,
            )  # fmt: skip


@contextmanager
def _compiled_only(arch: str) -> Iterator[list]:
    """Inside, starting a Triton kernel compiles it for `arch` and appends it to the list."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled: list = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        self.device_caches.clear()  # they are kept by device, not by architecture
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    driver.set_active(_Elsewhere(arch))
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run


def disassemble(cubin: bytes) -> str:
    """The machine code of a cubin, by the tool in Triton's wheel."""
    return _tool("nvdisasm", "-c", cubin)


def _machine_code_costs(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, local loads and stores) of a cubin."""
    usage = _tool("cuobjdump", "-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told no registers and no stack: {usage}")
    registers, stack_bytes = map(int, found.groups())
    # What spills does so to the stack. Disassembling takes a hundred times as long as this look.
    num_spills = len(re.findall(r"\b(?:LDL|STL)\b", disassemble(cubin))) if stack_bytes else 0
    return registers, num_spills


def _tool(name: str, flag: str, cubin: bytes) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, flag, file.name], capture_output=True, text=True, check=True).stdout
