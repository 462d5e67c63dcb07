"""Registers, spills and shared memory of every shipped kernel configuration, with no GPU.

A configuration that spills, or that takes more shared memory than the chip has, is a mistake: it would run slowly, or
not at all, on a machine that nobody has at hand.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from bench.result_files import write_result
from kernels import fused, grpo_loss, linear_logprob, linear_sample, paged_attention, sample, tree_attention
from kernels.jit import ARCHITECTURES, INTERPRETED, triton
from kernels.offline import SHARED_BYTES, Resources, resources
from trainer.machine import machine

MODULES = (sample, linear_sample, linear_logprob, grpo_loss, paged_attention, fused, tree_attention)


def run_compile(architectures: list[str], out: Path | None) -> list[Resources]:
    """Prints the table; writes resources.json and resources.md to `out`.

    Raises:
        ValueError: an unknown architecture, or configurations beyond a bound (after everything is written).
    """
    for arch in architectures:
        if arch not in ARCHITECTURES:
            raise ValueError(f"--arch {arch}: must be of {', '.join(ARCHITECTURES)}")
    if triton is None or INTERPRETED:
        raise ValueError("compiling needs Triton, and TRITON_INTERPRET unset")
    found: list[Resources] = []
    for arch in architectures:
        for module in tqdm(MODULES, desc=f"compiling for {arch}"):
            found += resources(module.shipped_launches(arch), arch)
    print(table(found))
    if out is not None:
        records = {"machine": machine(), "records": [asdict(one) for one in found]}  # before a tracked file changes
        write_result(out, "resources", table(found), records)
    if wrong := [one for one in found if is_beyond(one)]:
        raise ValueError(
            "spills, or too much shared memory: "
            + "; ".join(f"{one.kernel} ({one.launch}, {one.arch})" for one in wrong)
        )
    return found


def is_beyond(one: Resources) -> bool:
    return one.num_spills > 0 or one.shared_bytes > SHARED_BYTES[one.arch]


def table(found: list[Resources]) -> str:
    lines = [
        "| kernel | launch | arch | warps | registers | spills | shared KB (at most) |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for one in found:
        shared = f"{one.shared_bytes / 1024:.1f} ({SHARED_BYTES[one.arch] // 1024})"
        cells = [one.kernel, one.launch, one.arch, one.num_warps, one.num_registers, one.num_spills, shared]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)
