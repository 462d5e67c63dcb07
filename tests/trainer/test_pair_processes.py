"""The stages bt and dpo on two processes, of which one has no pair in every third step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import arguments, records, settings
from trainer.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tiny_files, tiny_judge, tmp_path):
    job = settings(tiny_files) | {"model.path": tiny_judge, "stages": ["dpo", "bt"]}
    for stage in ("dpo", "bt"):  # 7 pairs: 3, 3 and 1
        job |= {f"{stage}.pairs_per_step": 3, f"{stage}.dev_every": 3, f"{stage}.optim.lr": 1e-3}
        job |= {f"{stage}.tokens_per_micro_batch": 80}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "trainer/main.py", *arguments(job | {"out": tmp_path / "two"})], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert main(arguments(job | {"out": tmp_path / "one"})) == 0
    for file in ("metrics.jsonl", "judgments/dpo.jsonl", "judgments/bt.jsonl"):
        for two, one in zip(records(tmp_path / "two", file), records(tmp_path / "one", file), strict=True):
            assert two.keys() == one.keys()
            for key, value in one.items():
                if isinstance(value, str):
                    assert two[key] == value
                elif key != "tokens_per_s" and not key.endswith("_s"):
                    assert two[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (file, one, key)
