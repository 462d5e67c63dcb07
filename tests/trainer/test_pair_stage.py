"""The stages bt and dpo as runs: what they learn, leave behind, and go on with."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from patarm_core.pairs import Pair
from patarm_core.sampling import flip_sides
from rollout.contexts import load_pairs, load_rubrics
from tests.tiny_runs import arguments, pair, records, settings, write_jsonl
from trainer import bt
from trainer.bt import BradleyTerry
from trainer.dpo import DirectPreference
from trainer.learner import Learner
from trainer.main import main

STAGES = ("bt", "dpo")


class Pulled(Exception):
    """The plug."""


def job(tiny_files: dict, tiny_judge: Path, stage: str, out: Path) -> dict[str, object]:
    """7 pairs, so 3 steps an epoch, of 3, 3 and 1."""
    return settings(tiny_files) | {
        "out": out, "model.path": tiny_judge, "stages": [stage], "data.judgments": "", f"{stage}.steps": 7,
        f"{stage}.pairs_per_step": 3, f"{stage}.tokens_per_micro_batch": 128, f"{stage}.dev_every": 4,
        f"{stage}.checkpoint_every": 2, f"{stage}.optim.lr": 3e-3, f"{stage}.optim.warmup_steps": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_files, tiny_judge, tmp_path_factory) -> dict[str, Path]:
    """A run of each stage."""
    outs = {}
    for stage in STAGES:
        outs[stage] = tmp_path_factory.mktemp(stage) / "run"
        assert main(arguments(job(tiny_files, tiny_judge, stage, outs[stage]))) == 0
    return outs


def scores_of(out: Path, stage: str) -> dict[tuple[str, str], float]:
    return {(line["id"], line["side"]): line["score"] for line in records(out, f"judgments/{stage}.jsonl")}


@pytest.mark.parametrize("stage", STAGES)
def test_the_preference_is_learned_and_measured(runs, stage):
    """Good responses are preferred; no prompt that is measured on was trained on."""
    steps = records(runs[stage])
    assert [(r["stage"], r["step"]) for r in steps] == [(stage, n) for n in range(1, 8)]
    assert all(r["grad_norm"] > 0 and r["skipped"] == 0 for r in steps)
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["margin"] > steps[0]["margin"]
    assert [r["step"] for r in steps if "dev_accuracy" in r] == [4, 7]
    assert steps[-1]["dev_accuracy"] == 1.0 and steps[-1]["dev_accuracy_low"] < 1.0
    (found,) = json.loads((runs[stage] / "report.json").read_text())["held_out"][stage]["votes"]
    scores = scores_of(runs[stage], stage)
    margins = [scores[str(n), "chosen"] - scores[str(n), "rejected"] for n in range(40, 46)]
    assert (found["num_pairs"], found["num_right"]) == (6, sum(margin > 0 for margin in margins))
    assert found["accuracy"] == 1.0
    assert found["margin"] == pytest.approx(sum(margins) / 6)


def test_reports_name_what_was_measured(runs):
    report = (runs["bt"] / "report.md").read_text()
    assert "| start | 1 |" in report and "| after BT, by score | 1 | 100.0% |" in report
    report = (runs["dpo"] / "report.md").read_text()
    assert "| after DPO, by implicit reward | 1 | 100.0% |" in report
    assert "start" not in report  # the reference prefers nothing
    assert f"The trained policy: {runs['dpo'] / 'models' / 'dpo'}" in report


def test_transformers_reads_the_reward_model_and_gives_the_scores_of_the_run(runs):
    path = runs["bt"] / "models" / "bt"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (type(model).__name__, model.config.num_labels) == ("Qwen3ForSequenceClassification", 1)
    texts, names = [], []
    for number in range(40, 46):
        for side in ("chosen", "rejected"):
            row = pair(number)
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
            names.append((row["id"], side))
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        theirs = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
    assert dict(zip(names, theirs, strict=True)) == pytest.approx(scores_of(runs["bt"], "bt"), abs=1e-5)


def test_implicit_rewards_are_log_ratios_of_the_models_before_and_after(runs, tiny_judge):
    path = runs["dpo"] / "models" / "dpo"
    tokenizer = AutoTokenizer.from_pretrained(path)
    after, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in (path, tiny_judge))
    row = pair(40)
    turns = [{"role": "user", "content": row["prompt"]}]
    context = tokenizer.encode(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), add_special_tokens=False
    )
    completion = [*tokenizer.encode(row["chosen"], add_special_tokens=False), tokenizer.eos_token_id]

    @torch.inference_mode()
    def logprob(model) -> float:
        logprob_LV = model(torch.tensor([context + completion])).logits[0].log_softmax(-1)
        return sum(logprob_LV[len(context) - 1 + i, token].item() for i, token in enumerate(completion))

    expected = 0.1 * (logprob(after) - logprob(before))
    assert scores_of(runs["dpo"], "dpo")["40", "chosen"] == pytest.approx(expected, abs=1e-4)


def test_at_the_first_step_policy_and_reference_are_one(runs):
    first = records(runs["dpo"])[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert first["chosen_logprob"] < 0 and first["rejected_logprob"] < 0


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_ends_as_one_that_was_not(runs, tiny_files, tiny_judge, tmp_path, monkeypatch, stage):
    """It stops in step 6; the checkpoint is of step 4."""
    settings = job(tiny_files, tiny_judge, stage, tmp_path / "run")
    update = Learner.update

    def pulled(self, trees, token_loss, max_tokens, step, *args, **kwargs):
        if step == 5:
            raise Pulled
        return update(self, trees, token_loss, max_tokens, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", pulled)
        with pytest.raises(Pulled):
            main(arguments(settings))
    assert main(arguments(settings | {"resume": True})) == 0
    ours, expected = (
        [{k: v for k, v in row.items() if k != "tokens_per_s" and not k.endswith("_s")} for row in records(out)]
        for out in (tmp_path / "run", runs[stage])
    )
    assert ours == expected
    for file in sorted((runs[stage] / "models" / stage).iterdir()):
        assert (tmp_path / "run" / "models" / stage / file.name).read_bytes() == file.read_bytes(), file.name
    assert scores_of(tmp_path / "run", stage) == scores_of(runs[stage], stage)


def test_a_reward_model_can_be_trained_further(runs, tiny_files, tmp_path):
    path = runs["bt"] / "models" / "bt"
    assert main(arguments(job(tiny_files, path, "bt", tmp_path / "more") | {"bt.steps": 1})) == 0
    assert scores_of(tmp_path / "more", "initial") == pytest.approx(scores_of(runs["bt"], "bt"), abs=1e-6)


def test_all_labels_flipped_teach_the_contrary(tiny_files, tiny_judge, tmp_path):
    assert main(arguments(job(tiny_files, tiny_judge, "bt", tmp_path / "run") | {"data.label_noise": 1.0})) == 0
    (found,) = json.loads((tmp_path / "run" / "report.json").read_text())["held_out"]["bt"]["votes"]
    assert found["accuracy"] == 0.0


MISTAKES = [
    ({"stages": ["bt", "grpo"]}, "command line: stages=['bt', 'grpo']: bt leaves a reward model, which writes nothing; "
     "it comes last"),
    ({"stages": ["bt"], "data.pairs": ""}, "data.pairs: no file is given; stages bt need one"),
    ({"stages": ["dpo"], "dpo.label_smoothing": 0.5}, "command line: [dpo]: label_smoothing=0.5 must be in [0, 0.5)"),
    ({"stages": ["dpo"], "dpo.beta": 0.0}, "command line: [dpo]: beta=0.0 must be positive"),
    ({"stages": ["bt"], "bt.patience": 1}, "command line: [bt]: patience=1 counts dev measurements; dev_every=0 makes "
     "none"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), MISTAKES)
def test_a_mistake_is_one_line(tiny_files, tiny_judge, tmp_path, capfd, changes, line):
    base = settings(tiny_files) | {"out": tmp_path / "run", "model.path": tiny_judge}
    assert main(arguments(base | changes)) == 1
    assert capfd.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_pair_that_does_not_fit_is_named_with_its_length(tiny_files, tiny_judge, tmp_path, capfd, stage):
    base = job(tiny_files, tiny_judge, stage, tmp_path / "run")
    assert main(arguments(base | {f"{stage}.tokens_per_micro_batch": 47})) == 1
    line = capfd.readouterr().err
    assert line.startswith("error: pair 0 of tiny: prompt and both responses make ")
    assert line.endswith(f" tokens; {stage}.tokens_per_micro_batch in whole tiles of 16 is 32\n")
    file = write_jsonl(tmp_path / "long.jsonl", [pair(0), pair(1) | {"rejected": "so bad " * 80}])
    assert main(arguments(base | {"data.pairs": file})) == 1
    line = capfd.readouterr().err
    assert line.startswith("error: pair 1 of tiny: prompt and response make ")
    assert line.endswith(" tokens; the model's max_position_embeddings is 256\n")


def test_a_reward_model_is_no_judge(runs, tiny_files, tmp_path, capfd):
    path = runs["bt"] / "models" / "bt"
    assert main(arguments(settings(tiny_files) | {"out": tmp_path / "run", "model.path": path})) == 1
    assert "is not the language model expected" in capfd.readouterr().err


def test_a_response_is_tokenized_once_in_a_run(tiny_files, tiny_judge, tmp_path, monkeypatch):
    asked, whole_chat = [], bt.whole_chat
    monkeypatch.setattr(bt, "whole_chat", lambda *arguments: (asked.append(arguments[1:]), whole_chat(*arguments))[1])
    steps = {"bt.steps": 4, "bt.dev_every": 2, "bt.pairs_per_step": 5}
    assert main(arguments(job(tiny_files, tiny_judge, "bt", tmp_path / "run") | steps)) == 0
    assert len(asked) == len(set(asked)) == 2 * (7 + 4 + 6)  # training, dev and held-out pairs


@pytest.fixture
def seen(monkeypatch) -> list[Pair]:
    """The pairs that a run trains on in its first step, in which it stops."""
    pairs: list[Pair] = []
    for kind in (BradleyTerry, DirectPreference):

        def recorded(self, pair, leaves=kind.training_leaves):
            pairs.append(pair)
            return leaves(self, pair)

        monkeypatch.setattr(kind, "training_leaves", recorded)

    def pulled(*arguments, **_):
        raise Pulled

    def drawn(engine, shared, step_pairs, *_):
        pairs.extend(step_pairs)
        raise Pulled

    monkeypatch.setattr(Learner, "update", pulled)
    monkeypatch.setattr("trainer.grpo.roll_out", drawn)
    return pairs


def test_every_stage_trains_on_the_same_flips(tiny_files, tiny_judge, tmp_path, seen):
    pairs = load_pairs(tiny_files["data.pairs"], load_rubrics(str(tiny_files["prompt.rubrics_file"])))
    expected, is_flipped = flip_sides(pairs, 0.4, 0)
    assert is_flipped.count(True) == 3
    for stage in ("grpo", *STAGES):
        noise = {"data.label_noise": 0.4, "data.held_out": "", f"{stage}.pairs_per_step": 7}
        with pytest.raises(Pulled):
            main(arguments(job(tiny_files, tiny_judge, stage, tmp_path / stage) | noise))
        assert len(seen) == 7 and set(seen) == set(expected), stage
        seen.clear()
