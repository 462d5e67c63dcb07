"""A checkpoint of another model, tokenizer, recipe or data is refused in one line, before anything is touched."""

import json
import os
import shutil

import pytest

from tests.tiny_runs import arguments, pair, recipe_of, settings, write_jsonl
from trainer.identity import difference, run_identity
from trainer.inputs import load_inputs
from trainer.main import main


@pytest.fixture(scope="module")
def job(tiny_files, tiny_judge):
    changes = {"model.path": tiny_judge, "stages": ["grpo"], "grpo.steps": 1, "data.held_out": ""}
    return settings(tiny_files) | changes


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(arguments(job | {"out": out})) == 0
    return out


def identity_of(job: dict) -> dict:
    recipe = recipe_of(job | {"out": "x"})
    inputs = load_inputs(recipe, recipe.model.path)
    return run_identity(recipe, inputs.data, inputs.contexts, inputs.model_config)


def test_a_run_is_itself_and_what_changes_no_result_may_change(job):
    free = {"resume": True, "num_processes": 1, "rollout.max_rows": 7, "grpo.checkpoint_keep": 9, "stop_within_s": 1}
    assert difference(identity_of(job), identity_of(job | free)) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda it: it["shapes"].update({"norm.weight": [9]}),
            r"norm.weight has shape \[9\] there and shape \[32\] in",
        ),
        (lambda it: it["shapes"].pop("norm.weight"), r"norm.weight has no place there and shape \[32\] in this run's"),
        (lambda it: it.update(tokenizer="x"), "trained with another tokenizer"),
        (lambda it: it["recipe"].update({"grpo.clip_low": 0.5}), "grpo.clip_low was 0.5 there and is 0.2 in this run"),
        (lambda it: it.update(data="x"), "trained with other data"),
    ],
)
def test_every_difference_is_named(job, change, told):
    now = identity_of(job)
    saved = json.loads(json.dumps(now))
    change(saved)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(difference(saved, now))


def test_a_setting_that_is_newer_than_the_checkpoint_is_no_difference(job):
    now = identity_of(job)
    saved = json.loads(json.dumps(now))
    del saved["recipe"]["grpo.clip_low"]
    assert difference(saved, now) is None


def without_model(finished, tmp_path):
    """As if killed before the export."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "models")
    (out / "report.md").unlink()
    return out


def look(out):
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.rglob("*") if file.is_file()}


def test_other_data_is_refused_and_nothing_is_touched(job, finished, tmp_path, capsys):
    out = without_model(finished, tmp_path)
    before = look(out)
    capsys.readouterr()
    pairs = job["data.pairs"].read_bytes()
    write_jsonl(job["data.pairs"], [pair(i) for i in range(1, 8)])  # the file that the recipe names has changed
    try:
        assert main(arguments(job | {"out": out, "resume": True})) == 1
    finally:
        job["data.pairs"].write_bytes(pairs)
    told = "it was trained with other data (judgments, pairs, dev pairs or rubrics) than this run's"
    checkpoint = out / "checkpoints" / "grpo" / "step-000001"
    assert capsys.readouterr().err == f"error: {checkpoint}: cannot be resumed: {told}\n"
    assert look(out) == before


def test_the_checkpoint_of_another_run_is_refused(job, finished, tmp_path, capsys):
    out = without_model(finished, tmp_path)
    before_it, table, after = (out / "recipe.toml").read_text().partition("[grpo]\n")
    assert "clip_low = 0.2" in after
    (out / "recipe.toml").write_text(before_it + table + after.replace("clip_low = 0.2", "clip_low = 0.25", 1))
    before = look(out)
    capsys.readouterr()
    assert main(arguments(job | {"out": out, "resume": True, "grpo.clip_low": 0.25})) == 1
    checkpoint = out / "checkpoints" / "grpo" / "step-000001"
    told = "cannot be resumed: grpo.clip_low was 0.2 there and is 0.25 in this run"
    assert capsys.readouterr().err == f"error: {checkpoint}: {told}\n"
    assert look(out) == before


def test_a_judge_that_was_trained_again_is_another_reward_though_its_path_is_the_same(
    job, tiny_judge, tiny_files, tmp_path
):
    judge = shutil.copytree(tiny_judge, tmp_path / "judge")
    rubrics = tmp_path / "rubrics.toml"
    rubrics.write_text(tiny_files["prompt.rubrics_file"].read_text())
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "Which is good?"}])
    policy = {
        "role": "policy", "stages": ["rlhf"], "model.path": tiny_judge, "data.prompts": prompts,
        "rollout.max_completion_tokens": 8, "rlhf.reward.model": judge, "rlhf.reward.prompt.rubrics_file": rubrics,
    }  # fmt: skip
    before = identity_of(policy)
    (judge / "README.md").write_text("Mine.")
    os.utime(judge / "model.safetensors")
    moved = {"rlhf.reward.url": "http://elsewhere", "rlhf.reward.concurrency": 2, "rlhf.reward.kv_gib": 1.0}
    assert difference(before, identity_of(policy | moved)) is None
    older = {name: part for name, part in before.items() if name != "reward"}
    assert difference(older, before) is None
    rubrics.write_text(rubrics.read_text().replace("good", "very good"))
    assert "(rlhf.reward.model) or its rubrics have changed since" in difference(before, identity_of(policy))
    before = identity_of(policy)
    weights = bytearray((judge / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (judge / "model.safetensors").write_bytes(weights)
    assert f"{judge} (rlhf.reward.model)" in difference(before, identity_of(policy))
