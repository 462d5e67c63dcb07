"""Every shipped configuration compiles for an A100 and an H100, spills nothing and fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.kernel_resources import MODULES, is_beyond
from kernels.jit import triton
from kernels.offline import SHARED_BYTES, Resources

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(triton is None, reason="needs Triton")


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_every_shipped_configuration_compiles_within_the_bounds(arch, tmp_path):
    ran = subprocess.run(
        [sys.executable, "bench/main.py", "compile", "--arch", arch, "--out", tmp_path],
        cwd=ROOT, env={name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True, text=True,
    )  # fmt: skip
    print(ran.stdout)  # pytest -rP shows the table
    assert ran.returncode == 0, ran.stderr
    found = [Resources(**record) for record in json.loads((tmp_path / "resources.json").read_text())["records"]]
    assert {one.arch for one in found} == {arch}
    assert not any(is_beyond(one) for one in found)
    # Something of every module, each launch of it.
    launches = {label for module in MODULES for label, _ in module.shipped_launches(arch)}
    assert launches == {one.launch for one in found}
    assert (tmp_path / "resources.md").read_text().count("\n| _") == len(found)


def test_spills_and_too_much_shared_memory_are_beyond_the_bounds():
    fits = dict(
        kernel="k", launch="l", arch="sm_80", num_warps=4, num_registers=255, num_spills=0, shared_bytes=163 << 10
    )
    assert not is_beyond(Resources(**fits))
    assert is_beyond(Resources(**fits | {"num_spills": 1}))
    assert is_beyond(Resources(**fits | {"shared_bytes": (163 << 10) + 1}))
    assert not is_beyond(Resources(**fits | {"shared_bytes": (163 << 10) + 1, "arch": "sm_90"}))


@pytest.mark.parametrize(
    "arch, interpret, words",
    [
        ("sm_75", "0", "--arch sm_75: must be of sm_80, sm_90"),
        ("sm_80", "1", "compiling needs Triton, and TRITON_INTERPRET unset"),
    ],
)
def test_a_mistake_is_one_line(arch, interpret, words):
    ran = subprocess.run(
        [sys.executable, "bench/main.py", "compile", "--arch", arch],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": interpret}, capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (1, f"error: {words}\n")
