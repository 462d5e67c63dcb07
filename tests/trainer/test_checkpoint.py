"""What is saved comes back to the bit, and a run that was interrupted ends as if it had not been."""

import gc
import json
import shutil
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from rollout.weights import full_tensors
from tests.tiny_runs import arguments, groups, records, save_checkpoint, settings
from trainer.checkpoint import best_checkpoint, checkpoints, restore_
from trainer.checkpoint_writer import CheckpointWriter
from trainer.config import GrpoConfig, ModelConfig, OptimConfig
from trainer.learner import Learner
from trainer.main import main
from trainer.mistakes import Halt
from trainer.policy_loss import VALUES, PolicyLoss
from trainer.run_folder import RunFolder

OPTIM = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=2, weight_decay=0.01)
POLICY = PolicyLoss(GrpoConfig(kl_coef=0.0), None)


class Pulled(Exception):
    """The plug."""


class Counter:
    """A `Stateful` of a stage."""

    count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


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
    save_checkpoint(tmp_path, learner, 3, one_process, state={"counter": {"count": 7}})
    saved, counter = state_of(learner), Counter()
    metrics = advance(learner, range(3, 6))
    again = new_learner()
    assert restore_(tmp_path, again, {"counter": counter}, one_process) == 3
    assert counter.count == 7
    assert_equal(state_of(again), saved)
    assert again.decoder.lm_head.weight is again.decoder.embed_tokens.weight
    assert advance(again, range(3, 6)) == metrics
    assert_equal(state_of(again), state_of(learner))


def test_saving_changes_nothing_and_at_any_step_it_is_gone_on_from_exactly(new_learner, one_process, tmp_path):
    """Step 0 too, where the optimiser has no moments yet."""
    saving, silent = new_learner(), new_learner()
    for step in range(3):
        save_checkpoint(tmp_path, saving, step, one_process, keep=3)
        advance(saving, range(step, step + 1))
    advance(silent, range(3))
    assert_equal(state_of(saving), state_of(silent))
    for step in (2, 1, 0):
        resumed = new_learner()
        assert restore_(tmp_path, resumed, {}, one_process) == step
        advance(resumed, range(step, 3))
        assert_equal(state_of(resumed), state_of(silent))
        shutil.rmtree(tmp_path / f"step-{step:06d}")


def test_a_process_alone_saves_and_loads_without_collectives(new_learner, one_process, tmp_path, monkeypatch):
    """Threads that serve them would keep OpenMP threads of their own, and those of the training would sleep."""
    learner = new_learner()
    advance(learner, range(2))
    for name in ("new_group", "all_gather_object", "gather_object", "scatter_object_list", "broadcast_object_list"):
        monkeypatch.setattr(dist, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    save_checkpoint(tmp_path, learner, 2, one_process)
    again = new_learner()
    assert restore_(tmp_path, again, {}, one_process) == 2
    assert_equal(state_of(again), state_of(learner))


def test_beside_a_gpu_the_copy_is_written_without_it(new_learner, one_process, tmp_path, monkeypatch):
    """DCP would make a stream wait in the writing thread: of GPU 0, where a thread begins, even if that is a peer's."""
    learner = new_learner()
    advance(learner, range(1))
    writer = CheckpointWriter(tmp_path, {}, 1, one_process)
    copy = writer.snapshot(learner, 1, "{}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: pytest.fail("a stream is asked for"))
    writer.start(copy)
    writer.wait()
    monkeypatch.undo()
    again = new_learner()
    assert restore_(tmp_path, again, {}, one_process) == 1
    assert_equal(state_of(again), state_of(learner))


def test_a_peer_that_left_while_a_checkpoint_was_written_is_no_full_disk(
    new_learner, one_process, tmp_path, monkeypatch
):
    def alone(*_):
        raise RuntimeError("Connection closed by peer")

    writer = CheckpointWriter(tmp_path, {}, 1, one_process)
    monkeypatch.setattr(writer, "_gather", alone)
    writer.start(writer.snapshot(new_learner(), 1, "{}"))
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"):
        writer.wait()


def test_a_checkpoint_that_was_being_replaced_is_put_back(new_learner, one_process, tmp_path):
    learner = new_learner()
    save_checkpoint(tmp_path, learner, 1, one_process)
    old = (tmp_path / "step-000001").rename(tmp_path / "step-000001.old")  # and here the run died
    assert restore_(tmp_path, new_learner(), {}, one_process) == 1 and not old.exists()
    shutil.copytree(tmp_path / "step-000001", old)  # here after it had been replaced
    assert restore_(tmp_path, new_learner(), {}, one_process) == 1 and not old.exists()


def test_without_a_checkpoint_nothing_is_restored(new_learner, one_process, tmp_path):
    learner = new_learner()
    before = state_of(learner)
    assert restore_(tmp_path / "none", learner, {}, one_process) == 0
    assert_equal(state_of(learner), before)


def test_what_is_saved_is_what_was_there_when_it_was_copied(new_learner, one_process, tmp_path):
    learner = new_learner()
    advance(learner, range(2))
    saved = state_of(learner)
    with CheckpointWriter(tmp_path, {}, 1, one_process) as writer:
        snapshot = writer.snapshot(learner, 2, "{}")
        advance(learner, range(2, 4))
        writer.start(snapshot)
        advance(learner, range(4, 5))
        writer.wait()
    again = new_learner()
    assert restore_(tmp_path, again, {}, one_process) == 2
    assert_equal(state_of(again), saved)


def test_the_last_checkpoints_and_the_best_one_are_kept(new_learner, one_process, tmp_path):
    learner = new_learner()
    for step, accuracy in enumerate([0.5, 0.75, None, 0.75, 0.5, None], 7):
        save_checkpoint(tmp_path, learner, step, one_process, keep=2, dev_accuracy=accuracy)
    assert [step for step, _ in checkpoints(tmp_path)] == [8, 11, 12]
    assert best_checkpoint(tmp_path).name == "step-000008"
    assert restore_(tmp_path, new_learner(), {}, one_process) == 12


DAMAGES = {
    "a byte": (
        lambda path: flip_a_byte(path / "__0_0.distcp"), "__0_0.distcp does not have the checksum it was written with"
    ),
    "the end": (lambda path: cut(path / "__0_0.distcp"), "__0_0.distcp has 1,000 bytes, not"),
    "a file": (lambda path: (path / ".metadata").unlink(), ".metadata: No such file or directory"),
    "the state": (
        lambda path: (path / "state.json").write_text("[]"), "state.json does not have the checksum it"
    ),
    "the manifest": (
        lambda path: alter(path / "manifest.json", '"step": 4', '"step": 5'),
        "manifest.json does not have the checksum it was written with",
    ),
    "half the manifest": (lambda path: cut(path / "manifest.json", 99), "manifest.json cannot be read"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "has no manifest.json: it was not finished"),
}  # fmt: skip


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path, size: int = 1000) -> None:
    file.write_bytes(file.read_bytes()[:size])


def alter(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    new_learner, one_process, tmp_path, capsys, what
):
    damage, told = DAMAGES[what]
    learner = new_learner()
    advance(learner, range(2))
    save_checkpoint(tmp_path, learner, 2, one_process, keep=2)
    saved = state_of(learner)
    advance(learner, range(2, 4))
    save_checkpoint(tmp_path, learner, 4, one_process, keep=2)
    damage(tmp_path / "step-000004")
    again = new_learner()
    assert restore_(tmp_path, again, {}, one_process) == 2
    assert_equal(state_of(again), saved)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path / 'step-000004'}: {told}")
    assert warning.endswith("; it is not used, the stage goes on from step-000002\n")
    assert warning.count("\n") == 1
    # It takes no place among those that are kept, and is told once.
    save_checkpoint(tmp_path, learner, 3, one_process, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004.refused"]
    assert restore_(tmp_path, again, {}, one_process) == 3
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_cannot_be_written_is_one_line(new_learner, one_process, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Halt, match=r"file: a checkpoint could not be written: .*directory"):
        save_checkpoint(tmp_path / "file", new_learner(), 1, one_process)


def test_two_checkpoints_are_never_written_at_once(new_learner, one_process, tmp_path, monkeypatch):
    learner, running, most = new_learner(), [], []
    save = dcp.save

    def slow(*args, **kwargs):
        running.append(1)
        most.append(len(running))
        time.sleep(0.1)
        save(*args, **kwargs)
        running.pop()

    monkeypatch.setattr(dcp, "save", slow)
    with CheckpointWriter(tmp_path, {}, 3, one_process) as writer:
        for step in (1, 2, 3):
            writer.start(writer.snapshot(learner, step, "{}"))
    assert most == [1, 1, 1]
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 2, 3]


def test_a_save_that_was_interrupted_is_ignored_and_made_again(new_learner, one_process, tmp_path, monkeypatch):
    learner = new_learner()
    advance(learner, range(1))
    save_checkpoint(tmp_path, learner, 1, one_process)
    saved = state_of(learner)
    advance(learner, range(1, 2))

    def half(state, checkpoint_id, **options):
        Path(checkpoint_id).mkdir()
        (Path(checkpoint_id) / "__0_0.distcp").write_bytes(b"half a file")
        raise Pulled

    with monkeypatch.context() as patch:
        patch.setattr(dcp, "save", half)
        with pytest.raises(Halt):
            save_checkpoint(tmp_path, learner, 2, one_process)
    again = new_learner()
    assert restore_(tmp_path, again, {}, one_process) == 1
    assert_equal(state_of(again), saved)
    (tmp_path / "step-000007.partial").mkdir()  # of an attempt at another step
    save_checkpoint(tmp_path, learner, 2, one_process)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]
    assert restore_(tmp_path, again, {}, one_process) == 2
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


def test_a_copy_that_is_written_is_kept_no_longer(run_settings, tmp_path, monkeypatch):
    """It is as large as weights and moments; the next one is not made beside it."""
    copies, alive, snapshot = [], [], CheckpointWriter.snapshot

    def watched(self, *arguments):
        self.wait()
        alive.append(sum(copy() is not None for copy in copies))
        made = snapshot(self, *arguments)
        copies.extend(weakref.ref(copy) for copy in made.tensors["model"].values())
        return made

    monkeypatch.setattr(CheckpointWriter, "snapshot", watched)
    short = {"stages": ["sft"], "sft.steps": 3, "sft.checkpoint_every": 1, "sft.dev_every": 0, "data.held_out": ""}
    assert main(arguments(run_settings | short | {"out": tmp_path / "run"})) == 0
    assert alive == [0, 0, 0] and copies


def test_a_stage_begins_when_the_learner_before_it_is_gone(run_settings, tmp_path, monkeypatch):
    """Weights and moments of both have no place on a GPU, and garbage is not looked for every step."""
    learners, alive, make = [], [], Learner.__init__

    def watched(self, *arguments):
        alive.append(sum(decoder() is not None for decoder in learners))
        make(self, *arguments)
        learners.append(weakref.ref(self.decoder))

    monkeypatch.setattr(Learner, "__init__", watched)
    short = {"sft.steps": 1, "grpo.steps": 1, "sft.dev_every": 0, "grpo.dev_every": 0, "data.held_out": ""}
    gc.disable()
    try:
        assert main(arguments(run_settings | short | {"out": tmp_path / "run"})) == 0
    finally:
        gc.enable()
    assert alive == [0, 0, 0]  # one that is measured, and one of each stage


def test_a_run_interrupted_between_stages_goes_on_with_the_next(run_settings, uninterrupted, tmp_path, monkeypatch):
    job = run_settings | {"out": tmp_path / "run"}
    shutil.copytree(uninterrupted, tmp_path / "run")
    for file in ("report.md", "curves.png"):
        (tmp_path / "run" / file).unlink()
    for folder in ("models/grpo", "checkpoints/grpo"):
        shutil.rmtree(tmp_path / "run" / folder)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["held_out"].pop("grpo")
    report["measured"].remove("grpo")
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
