"""Triton, and what every kernel file needs to know of it and of the machine.

Where Triton is not installed (it comes for Linux on x86-64) the torch forms still work: `jit` then leaves a function
as it is, and nothing launches it.

Triton's interpreter (TRITON_INTERPRET=1) runs kernels in numpy, with differences that a kernel has to allow for:
`tl.dot` of bfloat16 operands multiplies bit patterns (so launchers pass UPCAST), conversion from float32 to bfloat16
truncates, `tl.max` passes over nan. Triton 3.6 needs numpy below 2.4 there. A process is interpreted or compiled as a
whole; compiled kernels are not affected by any of this.
"""

from __future__ import annotations

from functools import partial

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# Set by TRITON_INTERPRET=1 before the first import: kernels then run in numpy, on CPU tensors.
INTERPRETED = triton is not None and triton.knobs.runtime.interpret

ARCHITECTURES = ("sm_80", "sm_90")  # A100; H100 and H200


def jit(function=None, *, varying: tuple[str, ...] = ()):
    """`triton.jit`, or nothing where there is no Triton.

    Args:
        varying: numbers that are others in every call. A kernel is compiled anew for a number that is a multiple of 16
            where those before were not, which takes seconds, for pointers likewise (16 bytes); for these it is not.
    """
    if function is None:
        return partial(jit, varying=varying)
    return function if triton is None else triton.jit(function, do_not_specialize=varying)


def architecture(device: torch.device) -> str:
    """Which column of a kernel's configuration table a device takes.

    Chips with the shared memory of an H100 (majors 9 and 10) take "sm_90", all others "sm_80": a consumer's Blackwell,
    major 12, has less.

    Raises:
        ValueError: a device older than sm_80, which has no bfloat16 matrix units.
    """
    if device.type != "cuda":
        return ARCHITECTURES[0]  # the interpreter
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"kernels need compute capability 8.0 or later, {device} has {major}.{minor}")
    return "sm_90" if major in (9, 10) else "sm_80"


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n; 1 for 0."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
