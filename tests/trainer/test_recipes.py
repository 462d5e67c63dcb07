"""The recipes for real weights run as they stand, on a small model and little data."""

import json
from pathlib import Path

import pytest

from tests.tiny_runs import SMALL, arguments, choice, records, write_jsonl
from trainer.main import main, read_arguments

RECIPES = Path("trainer/recipes")
# What a two-core machine and a model of 256 positions cannot hold.
SMALLER = {
    "num_processes": 1,
    "prompt.rubrics": "primary",
    "prompt.template": "bare",
    "rollout.max_completion_tokens": 24,
}


@pytest.mark.parametrize("file", sorted(RECIPES.glob("qwen3*.toml")), ids=lambda file: file.stem)
def test_a_recipe_writes_to_a_folder_of_its_name(file):
    assert read_arguments([str(file)]).out == f"runs/{file.stem}"


@pytest.mark.parametrize(
    ("name", "lr", "final_lr", "batch", "epochs"),
    [
        ("8b_sft_point", 1.5e-6, 1.5e-7, 512, 1), ("8b_sft_pair", 1.5e-6, 1.5e-7, 256, 1),
        ("8b_grpo_point", 5e-7, None, 256, 1), ("8b_grpo_pair", 5e-7, None, 128, 2),
        ("14b_sft_point", 7.5e-7, 7.5e-8, 512, 1), ("14b_sft_pair", 7.5e-7, 7.5e-8, 256, 1),
        ("14b_grpo_point", 2.5e-7, None, 256, 1), ("14b_grpo_pair", 2.5e-7, None, 128, 1),
    ],
)  # fmt: skip
def test_hyperparameters_are_those_of_table_7(name, lr, final_lr, batch, epochs):
    """A batch is counted in contexts: a pair has two, or one where a judge chooses."""
    recipe = read_arguments([str(RECIPES / f"qwen3_{name}.toml")])
    (stage,) = recipe.stages
    config, mode = getattr(recipe, stage), recipe.mode
    assert mode == ("pairwise" if name.endswith("pair") else "pointwise")
    contexts = config.rows_per_step if stage == "sft" else config.pairs_per_step * (2 if mode == "pointwise" else 1)
    assert (config.optim.lr, contexts, config.epochs) == (lr, batch, epochs)
    assert config.optim.schedule == ("cosine" if final_lr else "constant")
    assert final_lr is None or config.optim.final_lr == final_lr


@pytest.mark.parametrize(
    ("sft", "rl"),
    [
        ("trainer/recipes/qwen3_8b_sft_point.toml", "trainer/recipes/qwen3_8b_grpo_point.toml"),
        ("trainer/recipes/qwen3_8b_sft_pair.toml", "trainer/recipes/qwen3_8b_grpo_pair.toml"),
        (None, "trainer/recipes/qwen3_8b_grpo_point_dapo.toml"),
        (None, "trainer/recipes/qwen3_8b_grpo_point_gspo.toml"),
    ],
    ids=["point", "pair", "dapo", "gspo"],
)
def test_sft_then_rl_in_bfloat16_with_activation_checkpointing(sft, rl, tiny_judge, tiny_files, tmp_path):
    files = {key: str(path) for key, path in tiny_files.items()}
    smaller = SMALLER | {"prompt.rubrics_file": files.pop("prompt.rubrics_file")}
    judgments = files.pop("data.judgments")
    model, exports, steps = str(tiny_judge), [], []
    if sft and "pair" in sft:
        judgments = str(write_jsonl(tmp_path / "choices.jsonl", [choice(i) for i in range(100, 132)]))
    if sft:
        job = {"model.path": model, "data.judgments": judgments, "sft.steps": 2, "sft.rows_per_step": 8}
        job |= {"out": str(tmp_path / "sft")}
        assert main([sft, *arguments(smaller | job)]) == 0
        model = str(tmp_path / "sft" / "models" / "sft")
        exports.append(Path(model))
        steps += records(tmp_path / "sft")
    job = files | {"model.path": model, "out": str(tmp_path / "rl"), "grpo.steps": 2, "grpo.pairs_per_step": 2}
    is_dapo = "dapo" in rl
    if is_dapo:
        job |= {"grpo.overlong_buffer_tokens": 6}
    assert main([rl, *arguments(smaller | job)]) == 0
    exports.append(tmp_path / "rl" / "models" / "grpo")
    steps += records(tmp_path / "rl")
    configs = [json.loads((path / "config.json").read_text()) for path in exports]
    assert [config.get("dtype", config.get("torch_dtype")) for config in configs] == ["bfloat16"] * len(exports)
    stages = [("sft", 1), ("sft", 2)] * bool(sft) + [("grpo", 1), ("grpo", 2)]
    assert [(r["stage"], r["step"]) for r in steps] == stages
    assert all(r["skipped"] == 0 for r in steps) and all(r["grad_norm"] > 0 for r in steps[:-2])
    # Table 7: the rate falls from 1.5e-6 to its tenth, and stays at 5e-7.
    assert [r["lr"] for r in steps] == pytest.approx([1.5e-6, 1.5e-7] * bool(sft) + [5e-7, 5e-7])
    assert ("pairs_drawn" in steps[-1], "reward_length" in steps[-1]) == (is_dapo, is_dapo)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("qwen3*_grpo_*.toml")), ids=lambda file: file.stem)
def test_in_bfloat16_the_rollouts_rounding_is_corrected_for(file):
    recipe = read_arguments([str(file)])
    assert recipe.model.dtype == "bfloat16" and recipe.grpo.importance_cap == 2


def test_gspo_clips_nothing_before_an_update(tiny_judge, tiny_files, tmp_path):
    """Its bounds, 3e-4 and 4e-4, are no wider than what bfloat16 rounds in the mean of a completion."""
    files = {key: str(path) for key, path in tiny_files.items() if key != "data.judgments"}
    job = SMALLER | files | {"model.path": str(tiny_judge), "out": str(tmp_path / "rl"), "grpo.steps": 2}
    job |= {"grpo.pairs_per_step": 5, "grpo.inner_epochs": 1}
    assert main(["trainer/recipes/qwen3_8b_grpo_point_gspo.toml", *arguments(job)]) == 0
    assert all(r["rollout_kl"] > 0 and r["clip_share"] == 0 for r in records(tmp_path / "rl"))


@pytest.mark.parametrize("percent", [20, 50, 100])
def test_flipped_labels_are_the_same_for_both_rewards(percent):
    """Which sides are flipped depends on the seed, the share and the pairs: figure 4 compares the same flips."""
    patarm, bt = (
        read_arguments([str(RECIPES / f"qwen3_8b_{kind}_noise{percent}.toml")]) for kind in ("grpo_point", "bt")
    )
    assert patarm.data == bt.data and patarm.seed == bt.seed and bt.data.label_noise == percent / 100


@pytest.mark.parametrize("rubrics", ["primary", "generated"])
def test_table_4_is_of_rl_alone(rubrics):
    recipe = read_arguments([str(RECIPES / f"qwen3_8b_grpo_point_{rubrics}.toml")])
    assert (recipe.stages, recipe.model.path, recipe.prompt.rubrics) == (("grpo",), "Qwen3-8B", rubrics)


def test_files_of_ones_own_train_a_small_model(tiny_files, tmp_path):
    files = {key: str(path) for key, path in tiny_files.items() if key != "data.dev"}
    sizes = {f"model.small.{key}": value for key, value in SMALL.items()} | {"eval.num_judgments": 2, "eval.votes": [2]}
    out = {"out": str(tmp_path / "own"), "rollout.num_rollouts": 2}
    assert main(["trainer/recipes/own_data.toml", *arguments(files | SMALLER | sizes | out)]) == 0
    assert [record["stage"] for record in records(tmp_path / "own")] == ["sft"] * 9 + ["grpo"]


@pytest.mark.parametrize("recipe", ["trainer/recipes/quickstart_bt.toml", "trainer/recipes/quickstart_dpo.toml"])
def test_the_quickstarts_pairs_train_rewards_without_judgments(tmp_path, recipe):
    stage = recipe.removesuffix(".toml").rpartition("_")[2]
    pairs = {f"data.embedded.num_{name}_pairs": 12 for name in ("sft", "rl", "dev", "held_out")}
    small = {"out": str(tmp_path / "run"), "model.path": "", f"{stage}.steps": 2, f"{stage}.dev_every": 1}
    assert main([recipe, *arguments(pairs | small)]) == 0
    assert [(r["stage"], r["step"]) for r in records(tmp_path / "run")] == [(stage, 1), (stage, 2)]
    assert len(records(tmp_path / "run", f"judgments/{stage}.jsonl")) == 24
