"""DPO from a judge's preferences between a policy's own answers."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from patarm_core.pairs import pair_to_json
from patarm_core.policy_rows import PolicyPrompt
from tests import tiny_runs
from trainer import run
from trainer.distributed import World
from trainer.judged_pairs import FILE, judged_pairs, preferred
from trainer.main import main
from trainer.policy import Answer
from trainer.run_folder import write_text
from trainer.scorers import Scored

PROMPT = PolicyPrompt(prompt="Why?", task="math", source="here", id="7")


# Named by recipes of these tests as tests.trainer.test_judged_pairs:NAME.
def by_letters(prompts, completions, **_columns) -> list[float]:
    return [float(text.count("o")) for text in completions]


def alike(prompts, completions, **_columns) -> list[float]:
    return [1.0] * len(completions)


def answer(text: str, score: float | None, is_cut: bool = False) -> Answer:
    return Answer(text, 4, is_cut, None, Scored(score, None if score is not None else "why"))


def test_the_best_and_the_worst_are_a_pair():
    pair = preferred(PROMPT, [answer("a", 5), answer("b", None), answer("c", 2), answer("d", 5), answer("e", 2)])
    assert (pair.chosen, pair.rejected, pair.task, pair.source, pair.id) == ("a", "c", "math", "here", "7")
    cut = preferred(PROMPT, [answer("long", 9, is_cut=True), answer("a", 5), answer("c", 2, is_cut=True)])
    assert (cut.chosen, cut.rejected) == ("a", "c")
    said = preferred(PROMPT, [answer(" \n", 0), answer("a", 5), answer("", 9), answer("c", 2)])
    assert (said.chosen, said.rejected) == ("a", "c")
    assert preferred(PROMPT, [answer("a", 5), answer("b", 5)]) == "equal scores"
    assert preferred(PROMPT, [answer("a", 5), answer("b", None)]).startswith("fewer than two")
    assert preferred(PROMPT, [answer("a", 5, is_cut=True), answer("b", 2, is_cut=True)]).endswith("all cut")


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\u2029"])
def test_a_line_separator_in_an_answer_ends_no_row(separator, tmp_path):
    pair = preferred(PROMPT, [answer(f"good{separator}tea", 5), answer("bad tea", 2)])
    write_text(tmp_path / "data" / FILE, pair_to_json(pair) + "\n")
    replica = SimpleNamespace(world=World(0, 1, torch.device("cpu"), None))
    assert judged_pairs(None, None, SimpleNamespace(path=tmp_path), "", [PROMPT], replica) == [pair]


@pytest.fixture
def job(tiny_judge, tmp_path):
    rows = [{"prompt": f"Which is good, {i}?", "id": i} for i in range(8)]
    return {
        "role": "policy", "stages": ["dpo"], "model.path": tiny_judge, "out": tmp_path / "run",
        "data.prompts": tiny_runs.write_jsonl(tmp_path / "prompts.jsonl", rows),
        "rollout.max_completion_tokens": 40, "dpo.preferences": "reward", "dpo.pairs_per_step": 3, "dpo.steps": 3,
        "dpo.tokens_per_micro_batch": 512, "dpo.checkpoint_every": 1, "dpo.optim.lr": 1e-3,
        "rlhf.reward.kind": "callable", "rlhf.reward.function": "tests.trainer.test_judged_pairs:by_letters",
    }  # fmt: skip


def test_a_policy_learns_what_the_reward_prefers_and_a_resumed_run_has_the_same_pairs(job, tmp_path, monkeypatch):
    tiny_runs.train(job)
    pairs = [json.loads(line) for line in (tmp_path / "run" / "data" / FILE).read_text().splitlines()]
    assert pairs and all(pair["chosen"].count("o") > pair["rejected"].count("o") for pair in pairs)
    losses = [row["loss"] for row in tiny_runs.records(tmp_path / "run")]
    assert len(losses) == 3
    real = run.run_on_pairs

    def cut(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_on_pairs", cut)  # the pairs are there, and no step
        assert main(tiny_runs.arguments(job | {"out": tmp_path / "cut"})) == 130
        seen = []
        patch.setattr(run, "run_on_pairs", lambda *arguments: seen.append(arguments[4].pairs) or real(*arguments))
        patch.setattr("trainer.judged_pairs.draw_answers", None)  # they are not drawn again
        tiny_runs.train(job | {"out": tmp_path / "cut", "resume": True})
    assert [pair.chosen for pair in seen[0]] == [pair["chosen"] for pair in pairs]
    assert [row["loss"] for row in tiny_runs.records(tmp_path / "cut")] == losses


def test_a_judge_that_is_changed_before_the_first_checkpoint_is_refused(
    job, tiny_judge, tiny_files, tmp_path, monkeypatch, capsys
):
    judge, out = shutil.copytree(tiny_judge, tmp_path / "judge"), tmp_path / "run"
    of_judge = {
        "rlhf.reward.kind": "judge", "rlhf.reward.model": judge,
        "rlhf.reward.prompt.rubrics_file": tiny_files["prompt.rubrics_file"],
    }  # fmt: skip
    both = [answer("good", 9), answer("bad", 1)]

    def drawn(engine, shared, prompts, *_, **__):
        return None, None, {prompt.key: both for prompt in prompts}

    def cut(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.judged_pairs.draw_answers", drawn)
    monkeypatch.setattr(run, "run_on_pairs", cut)  # the pairs are there, and no step
    assert main(tiny_runs.arguments(job | of_judge)) == 130
    assert main(tiny_runs.arguments(job | of_judge | {"resume": True})) == 130  # the same judge is no other
    weights = bytearray((judge / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (judge / "model.safetensors").write_bytes(weights)
    capsys.readouterr()
    assert main(tiny_runs.arguments(job | of_judge | {"resume": True})) == 1
    told = f"{judge} (rlhf.reward.model) or its rubrics have changed since"
    assert capsys.readouterr().err == f"error: {out / 'data' / FILE}: cannot be resumed from: {told}\n"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rlhf.reward.function": "tests.trainer.test_judged_pairs:alike"}, "equal scores 8"),
        ({"data.prompts": ""}, "data.prompts: no file is given; stages dpo need one"),
        ({"role": "judge"}, 'dpo.preferences = "reward": is of a policy\'s answers'),
        ({"rlhf.answer_after": "</think>"}, "rlhf.answer_after: dpo.preferences"),
        ({"dpo.num_answers": 1}, "num_answers=1 must be at least 2"),
    ],
)
def test_what_cannot_be_preferred_is_told(job, capsys, changes, problem):
    assert main(tiny_runs.arguments(job | changes)) == 1
    assert problem in capsys.readouterr().err
