"""Compilation without a GPU sees what it should see, and the draw compiles to the arithmetic that defines it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from kernels.jit import INTERPRETED, triton
from kernels.offline import resources

pytestmark = pytest.mark.skipif(triton is None, reason="needs Triton")

ROOT = Path(__file__).resolve().parents[2]


def compiled(tmp_path, source: str) -> str:
    """What a program prints that is not interpreted. Kernels need a file: Triton reads their source."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(source))
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# Every thread holds 64 numbers in 32 registers; the second kernel uses more shared memory than sm_80 has.
COSTLY = """
    import torch
    from kernels.jit import jit, tl
    from kernels.offline import resources

    @jit
    def spilling_kernel(x_ptr, n, X: tl.constexpr):
        x = tl.arange(0, X)
        total = tl.load(x_ptr + x)
        for i in range(n):
            total = total * total + tl.load(x_ptr + i * X + x)
        tl.store(x_ptr + x, total)

    @jit
    def sharing_kernel(x_ptr, X: tl.constexpr):
        x = tl.arange(0, X)
        square = x_ptr + x[:, None] * X + x[None, :]
        tl.store(square, tl.dot(tl.load(square), tl.load(square + X * X)).to(tl.bfloat16))

    x = torch.empty(1 << 20, device="meta")
    launches = [
        ("spills", lambda: spilling_kernel[1,](x, 5, X=2048, num_warps=1, maxnreg=32, enable_fp_fusion=True)),
        ("shares", lambda: sharing_kernel[1,](x.bfloat16(), X=256, num_warps=8, enable_fp_fusion=True)),
    ]
    for arch in ("sm_80", "sm_90"):
        for one in resources(launches, arch):
            print(one.launch, one.arch, one.num_registers, one.num_spills > 0, one.shared_bytes > 163 * 1024)
"""


def test_spills_and_shared_memory_are_seen(tmp_path):
    lines = [line.split() for line in compiled(tmp_path, COSTLY).splitlines()]
    found = {(launch, arch): rest for launch, arch, *rest in lines}
    assert len(found) == 4
    for arch in ("sm_80", "sm_90"):
        assert found["spills", arch] == ["32", "True", "False"]
        assert found["shares", arch][2] == "True"


# Fused multiply-adds of the draw's kernels, but for those that flush to zero: Triton's logarithm is made of them.
FUSED = """
    import re
    import torch
    from kernels import linear_sample, sample
    from kernels.draw import products_kernel, weights_kernel
    from kernels.jit import jit, tl
    from kernels.offline import _compiled_only, disassemble

    @jit
    def weigh_kernel(x_ptr, mass_ptr, X: tl.constexpr):
        x = tl.arange(0, X)
        weight = weights_kernel(tl.load(x_ptr + x))
        tl.store(mass_ptr + x, products_kernel(weight, tl.load(x_ptr + x)))

    def weigh():
        x, mass = torch.empty(128, device="meta"), torch.empty(128, dtype=torch.int64, device="meta")
        weigh_kernel[1,](x, mass, X=128, num_warps=4, enable_fp_fusion=True)

    for arch in ("sm_80", "sm_90"):
        launches = [("fused", weigh), *sample.shipped_launches(arch), *linear_sample.shipped_launches(arch)]
        for launch, run in launches:
            if launch in ("fused", "plain, V 151936, bfloat16", "filtered, V 151936, bfloat16", "B 16, bfloat16"):
                with _compiled_only(arch) as kernels:
                    run()
                for kernel in kernels:
                    code = disassemble(kernel.asm["cubin"])
                    fused = re.findall(r"\\b[FD]FMA(?!\\.FTZ)\\b", code)
                    print(kernel.metadata.name, len(fused), "FMA" in code or "FADD" in code)
"""


def test_the_draw_is_compiled_without_fused_multiply_adds(tmp_path):
    """One rounding in place of two would be another weight on a GPU than in numpy."""
    found: dict[str, list[int]] = {}
    for line in compiled(tmp_path, FUSED).splitlines():
        name, num_fused, has_arithmetic = line.split()
        assert has_arithmetic == "True"
        found.setdefault(name, []).append(int(num_fused))
    assert all(found.pop("weigh_kernel"))  # where fusing is allowed they are there, and seen
    assert set(found) == {"_block_kernel", "_draw_kernel", "_floor_kernel", "_linear_tile_kernel", "_choose_kernel"}
    found.pop("_block_kernel")  # only points at a block, and may fuse
    assert not any(num for nums in found.values() for num in nums)


# The large kernels of an update, of other numbers of tokens, and of trees of other shapes; those of decoding, of other
# numbers of rows, groups and pages.
AGAIN = """
    import numpy as np
    import torch
    from kernels import fused, linear_logprob, linear_sample, paged_attention, tree_attention
    from kernels.offline import _compiled_only
    from kernels.settings import Noise, Settings

    def decode(B, M, G, L):
        def empty(*shape, dtype=torch.int32):
            return torch.empty(shape, dtype=dtype, device="meta")

        words = np.arange(B, dtype=np.uint64)
        hidden, head = empty(B, 512, dtype=torch.bfloat16), empty(1024, 512, dtype=torch.bfloat16)
        config = linear_sample.CONFIGS[arch][0]
        linear_sample._linear_sample_triton(
            hidden, head, Noise(words, words, words), Settings.of(B, 0.7, 0, 1.0, 0.0), config
        )
        qkv, pages = empty(B, 16, 64, dtype=torch.bfloat16), empty(2, 100, 16, 4, 64, dtype=torch.bfloat16)
        prefix = paged_attention.SharedPrefix(empty(G, L), empty(G), empty(G + 1), 8)
        paged_attention._paged_attention_triton(
            qkv[:, :8], *pages, empty(B, M), empty(B), 0.1, prefix, config=paged_attention.CONFIGS[arch]
        )
        page_B, slot_B = empty(2, B, dtype=torch.int64)
        fused._write_pages_triton(qkv[:, 8:12], qkv[:, 12:], page_B, slot_B, *pages.transpose(2, 3))

    def update(T, L):
        hidden, weight, logits = (torch.empty(x, 512, dtype=torch.bfloat16, device="meta") for x in (T, 1024, T))
        tokens = torch.empty(T, dtype=torch.int64, device="meta")
        linear_logprob._linear_logprob_triton(hidden, weight, tokens, 1.0, linear_logprob.CONFIGS[arch])
        linear_logprob._d_logits_triton(logits.float(), logits, tokens, *[torch.empty(T, device="meta")] * 5)
        x = torch.empty(L, 8, 64, dtype=torch.bfloat16, device="meta")
        tiles, configs = tree_attention.Tiles(np.full(L, L), x.device), tree_attention.configs_of(arch, x.dtype, 64)
        _, lse = tree_attention.forward(x, x, x, tiles, configs.forward)
        _, delta = tree_attention.d_queries(x, x, x, x, x, lse, tiles, configs.d_queries)
        tree_attention.d_keys(x, x, x, x, lse, delta, tiles, configs.d_keys)

    for arch in ("sm_80", "sm_90"):
        for run, sizes in (
            (update, ((1600, 2048), (1601, 2064), (3000, 4096))),
            (decode, ((32, 64, 32, 64), (16, 16, 16, 16), (8, 8, 8, 8), (5, 3, 1, 1), (1, 1, 1, 40))),
        ):
            kernels = []
            for some in sizes:
                with _compiled_only(arch) as compiled:
                    run(*some)
                kernels.append([kernel.hash for kernel in compiled])
            print(arch, run.__name__, len(kernels[0]), len(set(sum(kernels, []))))
"""


def test_other_numbers_of_tokens_need_no_other_kernels(tmp_path):
    """To compile one takes seconds; every micro-batch and every step of a rollout is of other sizes."""
    lines = [line.split() for line in compiled(tmp_path, AGAIN).splitlines()]
    assert [line[:2] for line in lines] == [[arch, run] for arch in ("sm_80", "sm_90") for run in ("update", "decode")]
    for _, run, num_launched, num_compiled in lines:
        assert num_launched == num_compiled and int(num_launched) >= {"update": 6, "decode": 5}[run]


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled in this process")
def test_an_interpreted_process_is_refused():
    with pytest.raises(RuntimeError, match="interpreted"):
        next(resources([("x", lambda: torch.empty(1))], "sm_80"))
