"""The recipes for real weights run as they stand, on a small model and little data."""

import json

import pytest

from tests.tiny_runs import SMALL, arguments, records
from trainer.main import main

# What a two-core machine and a model of 256 positions cannot hold.
SMALLER = {
    "num_processes": 1,
    "prompt.rubrics": "primary",
    "prompt.template": "bare",
    "rollout.max_completion_tokens": 24,
}


def test_sft_then_rl_in_bfloat16_with_activation_checkpointing(tiny_judge, tiny_files, tmp_path):
    files = {key: str(path) for key, path in tiny_files.items()}
    rubrics = {"prompt.rubrics_file": files.pop("prompt.rubrics_file")}
    sft = rubrics | {
        "out": str(tmp_path / "sft"),
        "model.path": str(tiny_judge),
        "data.judgments": files["data.judgments"],
    }
    assert (
        main(
            ["trainer/recipes/qwen3_8b_sft_point.toml", *arguments(SMALLER | sft), "sft.steps=2", "sft.rows_per_step=8"]
        )
        == 0
    )
    rl = rubrics | files | {"out": str(tmp_path / "rl"), "model.path": str(tmp_path / "sft" / "models" / "sft")}
    assert (
        main(
            [
                "trainer/recipes/qwen3_8b_grpo_point.toml",
                *arguments(SMALLER | rl),
                "grpo.steps=2",
                "grpo.pairs_per_step=2",
            ]
        )
        == 0
    )
    exports = [json.loads((tmp_path / r / "config.json").read_text()) for r in ("sft/models/sft", "rl/models/grpo")]
    assert [export.get("dtype", export.get("torch_dtype")) for export in exports] == ["bfloat16"] * 2
    steps = records(tmp_path / "sft") + records(tmp_path / "rl")
    assert [(r["stage"], r["step"]) for r in steps] == [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2)]
    assert all(r["grad_norm"] > 0 and r["skipped"] == 0 for r in steps[:2])
    # Table 7: the rate falls from 1.5e-6 to its tenth, and stays at 5e-7.
    assert [r["lr"] for r in steps] == pytest.approx([1.5e-6, 1.5e-7, 5e-7, 5e-7])


def test_files_of_ones_own_train_a_small_model(tiny_files, tmp_path):
    files = {key: str(path) for key, path in tiny_files.items() if key != "data.dev"}
    sizes = {f"model.small.{key}": value for key, value in SMALL.items()} | {"eval.num_judgments": 2, "eval.votes": [2]}
    out = {"out": str(tmp_path / "own"), "rollout.num_rollouts": 2}
    assert main(["trainer/recipes/own_data.toml", *arguments(files | SMALLER | sizes | out)]) == 0
    assert [record["stage"] for record in records(tmp_path / "own")] == ["sft"] * 9 + ["grpo"]
