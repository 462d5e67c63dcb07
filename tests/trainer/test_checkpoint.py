"""What is saved comes back to the bit, and a run that was interrupted ends as if it had not been."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from rollout.weights import full_tensors
from tests.tiny_runs import arguments, groups, records, settings
from trainer.checkpoint import load_checkpoint_, put_in_place, write_checkpoint_aside
from trainer.config import GrpoConfig, ModelConfig, OptimConfig
from trainer.grpo import VALUES, policy_loss
from trainer.learner import Learner
from trainer.main import main
from trainer.run_folder import RunFolder

OPTIM = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=2, weight_decay=0.01)
POLICY = policy_loss(GrpoConfig(kl_coef=0.0), None)


class Pulled(Exception):
    """The plug."""


def save_checkpoint(folder, learner, step, world):
    """Both halves, as a stage runs them around its log."""
    write_checkpoint_aside(folder, learner, step, world)
    put_in_place(folder, step, world)


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Weights, moments and step counts, whole."""
    state = {name: tensor.clone() for name, tensor in full_tensors(learner.decoder)}
    for number, moments in learner.optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            state[f"{number}.{name}"] = getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)().clone()
    return state


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def advance(learner: Learner, steps: range) -> list[dict[str, float]]:
    return [learner.update(groups(3, seed=step), POLICY, 64, step, VALUES) for step in steps]


@pytest.fixture
def new_learner(tiny_judge, one_process):
    return lambda: Learner(tiny_judge, ModelConfig(), OPTIM, 8, one_process)


def test_weights_optimiser_and_step_come_back_exactly(new_learner, one_process, tmp_path):
    learner = new_learner()
    advance(learner, range(3))
    save_checkpoint(tmp_path, learner, 3, one_process)
    saved = state_of(learner)
    metrics = advance(learner, range(3, 6))
    again = new_learner()
    assert load_checkpoint_(tmp_path, again) == 3
    assert_equal(state_of(again), saved)
    assert again.decoder.lm_head.weight is again.decoder.embed_tokens.weight
    assert advance(again, range(3, 6)) == metrics
    assert_equal(state_of(again), state_of(learner))


def test_saving_changes_nothing(new_learner, one_process, tmp_path):
    saving, silent = new_learner(), new_learner()
    for step in range(3):
        advance(saving, range(step, step + 1))
        save_checkpoint(tmp_path, saving, step + 1, one_process)
    advance(silent, range(3))
    assert_equal(state_of(saving), state_of(silent))


def test_without_a_checkpoint_nothing_is_restored(new_learner, tmp_path):
    learner = new_learner()
    before = state_of(learner)
    assert load_checkpoint_(tmp_path / "none", learner) == 0
    assert_equal(state_of(learner), before)


def test_the_newest_checkpoint_counts_and_older_ones_go(new_learner, one_process, tmp_path):
    learner = new_learner()
    for step in (9, 10):
        advance(learner, range(step, step + 1))
        save_checkpoint(tmp_path, learner, step, one_process)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]
    assert load_checkpoint_(tmp_path, new_learner()) == 10


def test_a_save_that_was_interrupted_is_ignored_and_made_again(new_learner, one_process, tmp_path, monkeypatch):
    learner = new_learner()
    advance(learner, range(1))
    save_checkpoint(tmp_path, learner, 1, one_process)
    saved = state_of(learner)
    advance(learner, range(1, 2))

    def half(state, checkpoint_id):
        Path(checkpoint_id).mkdir()
        (Path(checkpoint_id) / "__0_0.distcp").write_bytes(b"half a file")
        raise Pulled

    with monkeypatch.context() as patch:
        patch.setattr(dcp, "save", half)
        with pytest.raises(Pulled):
            save_checkpoint(tmp_path, learner, 2, one_process)
    again = new_learner()
    assert load_checkpoint_(tmp_path, again) == 1
    assert_equal(state_of(again), saved)
    (tmp_path / "step-000007.partial").mkdir()  # of an attempt at another step
    save_checkpoint(tmp_path, learner, 2, one_process)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]
    assert load_checkpoint_(tmp_path, again) == 2
    assert_equal(state_of(again), state_of(learner))


@pytest.fixture(scope="module")
def run_settings(tiny_files, tiny_judge):
    return settings(tiny_files) | {
        "model.path": tiny_judge, "sft.steps": 5, "sft.checkpoint_every": 2, "sft.dev_every": 2, "sft.optim.lr": 1e-3,
        "grpo.steps": 5, "grpo.checkpoint_every": 2, "grpo.dev_every": 3, "grpo.inner_epochs": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(run_settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(arguments(run_settings | {"out": out})) == 0
    return out


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "tokens_per_s" and not k.endswith("_s")} for row in rows]


def assert_same_run(out: Path, expected: Path) -> None:
    metrics = without_times(records(out))
    assert [(r["stage"], r["step"]) for r in metrics] == [(s, n) for s in ("sft", "grpo") for n in range(1, 6)]
    assert metrics == without_times(records(expected))
    assert (out / "samples.jsonl").read_bytes() == (expected / "samples.jsonl").read_bytes()
    for stage in ("sft", "grpo"):
        files = sorted(file.name for file in (expected / "models" / stage).iterdir())
        assert sorted(file.name for file in (out / "models" / stage).iterdir()) == files
        for file in files:
            assert (out / "models" / stage / file).read_bytes() == (expected / "models" / stage / file).read_bytes()
    held_out = [json.loads((folder / "report.json").read_text())["held_out"] for folder in (out, expected)]
    assert held_out[0] == held_out[1]


def pull_the_plug(monkeypatch, where: type, name: str, call: int, after: bool = False) -> None:
    """The given call of a method raises instead of being done, or right after it is done."""
    method, calls = getattr(where, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call and not after:
            raise Pulled
        result = method(*args, **kwargs)
        if len(calls) == call:
            raise Pulled
        return result

    monkeypatch.setattr(where, name, counted)


@pytest.mark.parametrize(
    ("name", "where", "call", "after"),
    [
        ("update", Learner, 2, False),  # SFT, before any checkpoint
        ("update", Learner, 4, False),  # SFT step 4: the log is a step ahead of the checkpoint
        ("update", Learner, 5 + 2 * 3 + 2, False),  # GRPO step 4, in its second inner epoch
        ("append", RunFolder, 5 + 2 * 3 + 1, True),  # GRPO step 4, between its metrics and its samples
        ("append", RunFolder, 5 + 2 * 5, True),  # GRPO, after all was logged and before the last checkpoint
    ],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    run_settings, uninterrupted, tmp_path, monkeypatch, name, where, call, after
):
    job = run_settings | {"out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        pull_the_plug(patch, where, name, call, after)
        with pytest.raises(Pulled):
            main(arguments(job))
    assert not (tmp_path / "run" / "report.md").exists()
    assert main(arguments(job | {"resume": True})) == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_run_interrupted_between_stages_goes_on_with_the_next(run_settings, uninterrupted, tmp_path, monkeypatch):
    job = run_settings | {"out": tmp_path / "run"}
    shutil.copytree(uninterrupted, tmp_path / "run")
    for file in ("report.md", "curves.png"):
        (tmp_path / "run" / file).unlink()
    for folder in ("models/grpo", "checkpoints/grpo"):
        shutil.rmtree(tmp_path / "run" / folder)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["held_out"].pop("grpo")
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    assert main(arguments(job | {"resume": True})) == 0
    assert_same_run(tmp_path / "run", uninterrupted)
    later = json.loads((tmp_path / "run" / "report.json").read_text())
    assert later["wall_s"] > report["wall_s"]  # what the earlier process spent counts


def test_after_the_end_a_resumed_run_prints_its_report_and_touches_nothing(run_settings, uninterrupted, capsys):
    def look():
        return {
            file: (file.stat().st_mtime_ns, file.read_bytes()) for file in uninterrupted.rglob("*") if file.is_file()
        }

    before = look()
    assert main(arguments(run_settings | {"out": uninterrupted, "resume": True})) == 0
    assert look() == before
    printed = capsys.readouterr()
    assert printed.out.strip() == (uninterrupted / "report.md").read_text().strip()
    assert printed.err == ""


def test_there_must_be_a_run_to_resume(run_settings, tmp_path, capsys):
    assert main(arguments(run_settings | {"out": tmp_path / "none", "resume": True})) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: there is no run to resume (no recipe.toml)\n"
    assert list(tmp_path.iterdir()) == []
