"""Stage rlhf on two processes: whoever drew and judged an answer, the losses are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_runs
from trainer.main import main

ROOT = Path(__file__).resolve().parents[2]


# Named by the recipe as tests.trainer.test_rlhf_processes:NAME.
def by_letters(prompts, completions, **_columns) -> list[float | None]:
    """Some answers, and all to one of the prompts, have no score."""
    return [
        None if "number 3" in prompt or text.count("e") % 3 == 2 else float(text.count("o") + text.count("e"))
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def is_long(prompt, response, checks) -> float:
    return min(1.0, len(response) / checks["most"])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tiny_files, tiny_judge, tmp_path):
    rows = [{"prompt": f"Which is good, number {i}?", "id": i, "checks": {"most": 30}} for i in range(9)]
    job = {
        "role": "policy", "stages": ["rlhf"], "model.path": tiny_judge,
        "data.prompts": tiny_runs.write_jsonl(tmp_path / "prompts.jsonl", rows[:5]),
        "data.dev_prompts": tiny_runs.write_jsonl(tmp_path / "dev.jsonl", rows[5:7]),
        "data.held_out_prompts": tiny_runs.write_jsonl(tmp_path / "held_out.jsonl", rows[7:]),
        "data.checker": "tests.trainer.test_rlhf_processes:is_long",
        "rollout.num_rollouts": 4, "rollout.max_completion_tokens": 12,
        "eval.num_judgments": 2, "eval.votes": [1], "eval.num_dev_judgments": 2,
        # 3 prompts and 2: the ranks' shares differ, and with `drop` one of them may have nothing to train on
        "rlhf.steps": 4, "rlhf.prompts_per_step": 3, "rlhf.tokens_per_micro_batch": 160, "rlhf.dev_every": 2,
        "rlhf.optim.lr": 1e-3, "rlhf.kl_coef": 0.05, "rlhf.overlong_buffer_tokens": 4, "rlhf.unscored": "drop",
        "rlhf.reward.kind": "callable", "rlhf.reward.function": "tests.trainer.test_rlhf_processes:by_letters",
    }  # fmt: skip
    by_judge = {
        "rlhf.unscored": "mean", "rlhf.overlong_buffer_tokens": 0, "rlhf.steps": 2, "rlhf.reward.kind": "judge",
        "rlhf.reward.model": tiny_judge, "rlhf.reward.votes": 2, "rlhf.reward.max_completion_tokens": 24,
        "rlhf.reward.prompt.rubrics": "primary", "rlhf.reward.prompt.template": "bare",
        "rlhf.reward.prompt.rubrics_file": tiny_files["prompt.rubrics_file"],
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    unscored = 0.0
    for name, changes in (("function", {}), ("judge", by_judge)):
        two, one = tmp_path / f"{name}-two", tmp_path / f"{name}-one"
        done = subprocess.run(
            [*command, "trainer/main.py", *tiny_runs.arguments(job | changes | {"out": two})], cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert main(tiny_runs.arguments(job | changes | {"out": one})) == 0
        for of_two, of_one in zip(tiny_runs.records(two), tiny_runs.records(one), strict=True):
            assert of_two.keys() == of_one.keys()
            assert sum(of_two.pop("prompts_by_rank")) == sum(of_one.pop("prompts_by_rank"))
            unscored += of_one["unscored_rate"]
            for key, value in of_one.items():
                if not (isinstance(value, str) or key in ("tokens_per_s", "rollout_idle_share") or key.endswith("_s")):
                    assert of_two[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, of_one["step"], key)
        for file in ("samples.jsonl", "answers/rlhf.jsonl"):
            assert tiny_runs.records(two, file) == tiny_runs.records(one, file)
    assert unscored > 0
