"""A run's folder: its own, never another's, and logs that survive a kill."""

import json
from types import SimpleNamespace

import pytest
import torch

from patarm_core.recipe import read_recipe
from tests.tiny_runs import recipe_of
from trainer.config import Recipe
from trainer.run_folder import STEP_LOGS, RunFolder, Stopwatch, write_text


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path, is_writer=True)


def opened(out, world, **changes) -> RunFolder:
    recipe = recipe_of({"out": out, **changes})
    folder = RunFolder.open(recipe, world)
    folder.create(recipe)
    return folder


def test_each_new_run_gets_a_folder_of_its_own(tmp_path, one_process):
    out = tmp_path / "runs" / "x"
    assert [opened(out, one_process).path.name for _ in range(3)] == ["x", "x-2", "x-3"]
    assert opened(out, one_process, resume=True).path == out


@pytest.mark.parametrize("agent", ["", "host:1:5"])
def test_of_two_runs_that_are_started_at_once_one_gets_the_folder(tmp_path, one_process, agent):
    recipes = [recipe_of({"out": tmp_path / "x", "seed": seed}) for seed in (1, 2)]
    first, second = (RunFolder.open(recipe, one_process, agent) for recipe, agent in zip(recipes, (agent, "host:1:6")))
    first.create(recipes[0])
    kept = {file.name: file.read_text() for file in first.path.iterdir()}
    with pytest.raises(ValueError, match=f"{tmp_path / 'x'}: another run has just begun in it; start this one again"):
        second.create(recipes[1])
    assert {file.name: file.read_text() for file in first.path.iterdir()} == kept
    assert opened(tmp_path / "x", one_process).path.name == "x-2"


def test_a_run_that_comes_second_leaves_the_first_one_its_launcher(tmp_path, one_process, monkeypatch):
    recipes = [recipe_of({"out": tmp_path / "x", "seed": seed}) for seed in (1, 2)]
    first, second = (RunFolder.open(recipe, one_process, f"host:1:{recipe.seed}") for recipe in recipes)

    def meanwhile(*of_second):
        monkeypatch.setattr("trainer.run_folder.write_text", write_text)
        first.create(recipes[0])
        write_text(*of_second)

    monkeypatch.setattr("trainer.run_folder.write_text", meanwhile)
    with pytest.raises(ValueError, match="another run has just begun in it"):
        second.create(recipes[1])
    again = [RunFolder.open(recipe, one_process, f"host:1:{recipe.seed}") for recipe in recipes]
    assert [(folder.path.name, folder.is_resumed) for folder in again] == [("x", True), ("x-2", False)]


def test_where_there_are_no_links_a_recipe_is_written_all_the_same(tmp_path, one_process, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refused)
    assert [file.name for file in opened(tmp_path / "x", one_process).path.iterdir()] == ["recipe.toml"]


def test_what_ranks_were_looking_for_does_not_stay(tmp_path):
    for mark in ("seen-1", "seen-2"):  # the first run was killed
        RunFolder(tmp_path, is_writer=True, is_resumed=True, mark=mark).create(None)
    assert [file.name for file in tmp_path.iterdir()] == ["seen-2"]


def test_where_a_file_system_raises_all_ranks_come_to_an_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.run_folder.SEEN_WITHIN_S", 0.0)
    folder = RunFolder(tmp_path / ("x" * 300), is_writer=False, mark="seen-1")  # a name too long raises, as a stale one
    with pytest.raises(ValueError, match="rank 1 does not see what rank 0 writes there"):
        folder.refuse_unshared(SimpleNamespace(gather=lambda is_seen: [True, is_seen]))


def test_opening_makes_nothing(tmp_path, one_process):
    assert RunFolder.open(recipe_of({"out": tmp_path / "x"}), one_process).path == tmp_path / "x"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_used_and_a_file_is_not(tmp_path, one_process):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    assert opened(tmp_path / "empty", one_process).path.name == "empty"
    assert opened(tmp_path / "file", one_process).path.name == "file-2"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_goes_on_with_the_recipe_it_began_with(tmp_path, one_process):
    opened(tmp_path / "x", one_process, **{"grpo.optim.lr": 0.25})
    with pytest.raises(ValueError) as error:
        opened(tmp_path / "x", one_process, **{"grpo.optim.lr": 0.5, "resume": True})
    file = tmp_path / "x" / "recipe.toml"
    told = "the run began with 0.25, not with 0.5; start a new one to change it"
    assert str(error.value) == f"{file}: grpo.optim.lr: {told}"
    harmless = {"sft.tokens_per_micro_batch": 64, "rollout.max_rows": 8, "grpo.checkpoint_every": 3}
    harmless |= {"watch.steps": 9, "log.tensorboard": True}
    with pytest.raises(ValueError, match=r"grpo\.steps: the run began with 0, not with 9"):
        opened(tmp_path / "x", one_process, **{"grpo.optim.lr": 0.25, "grpo.steps": 9, "resume": True})
    moved = (tmp_path / "x").rename(tmp_path / "y")
    assert opened(moved, one_process, **harmless, **{"grpo.optim.lr": 0.25, "resume": True}).path == moved


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'seed = 1\nout = "x', "not TOML"),
        (b'out = "x"\nsede = 1\n', "unknown key 'sede'; the nearest is 'seed'"),
        (b"\xff", "decode"),
    ],
    ids=["cut short", "of another version", "no text"],
)
def test_a_recipe_that_cannot_be_read_is_told_and_not_gone_on_with(tmp_path, one_process, text, problem):
    opened(tmp_path / "x", one_process)
    (tmp_path / "x" / "recipe.toml").write_bytes(text)
    with pytest.raises(ValueError, match=problem) as error:
        opened(tmp_path / "x", one_process, resume=True)
    assert str(error.value).startswith(f"{tmp_path / 'x'}: cannot be resumed: ")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("metrics.jsonl", '{"stage": "sft", "step": 1}\n{oops\n', "metrics.jsonl:2: not a JSON object: "),
        ("samples.jsonl", b"\xff\n", "samples.jsonl:1: not a JSON object: "),
        ("report.json", "[]", "report.json: is a list; expected a JSON object"),
    ],
)
def test_a_log_that_cannot_be_read_is_told_before_anything_is_loaded(tmp_path, one_process, name, text, problem):
    folder = opened(tmp_path / "x", one_process).path
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        RunFolder.open(recipe_of({"out": folder, "resume": True}), one_process)
    assert str(error.value).startswith(f"{folder}: cannot be resumed: {folder / problem}")


def test_the_resolved_recipe_is_kept(tmp_path, one_process):
    recipe = recipe_of({"out": tmp_path / "x", "seed": 5, "grpo.optim.lr": 0.25})
    RunFolder.open(recipe, one_process).create(recipe)
    assert read_recipe(Recipe, [("kept", (tmp_path / "x" / "recipe.toml").read_text())]) == recipe


@pytest.mark.parametrize("cut", [1, 4, 5, 20])
def test_a_line_that_a_kill_cut_short_is_dropped_wherever_the_cut_is(folder, cut):
    rows = [{"stage": "sft", "step": 1, "judgment": "a\u2028b\x85c"}, {"stage": "sft", "step": 2, "judgment": "é" * 9}]
    folder.append("samples.jsonl", *rows)
    file = folder.path / "samples.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])  # 4 and 5 bytes: within and before a two-byte character
    assert folder.records("samples.jsonl") == rows[:1]
    folder.rewind("sft", 2)
    folder.append("samples.jsonl", rows[1])
    assert folder.records("samples.jsonl") == rows


def test_rewinding_forgets_later_steps_of_that_stage_alone(folder):
    rows = [{"stage": stage, "step": step} for stage in ("sft", "grpo") for step in (1, 2, 3)]
    for file in STEP_LOGS:
        folder.append(file, *rows)
    folder.rewind("grpo", 1)
    kept = [("sft", 1), ("sft", 2), ("sft", 3), ("grpo", 1)]
    for file in STEP_LOGS:
        assert [(r["stage"], r["step"]) for r in folder.records(file)] == kept


def test_one_rank_writes(tmp_path):
    folder = RunFolder(tmp_path, is_writer=False)
    folder.append("metrics.jsonl", {"stage": "sft", "step": 1})
    folder.rewind("sft", 0)
    assert list(tmp_path.iterdir()) == []
    assert folder.records("metrics.jsonl") == []


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "a" / "x.json", "old")

    def full(*_args, **_kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OSError, match="no space left"):
            write_text(tmp_path / "a" / "x.json", "new")
    assert (tmp_path / "a" / "x.json").read_text() == "old"


def test_a_model_counts_as_finished_once_its_config_is_there(folder):
    folder.model("sft").mkdir(parents=True)
    (folder.model("sft") / "tokenizer.json").write_text("{}")
    assert not folder.is_finished("sft")
    (folder.model("sft") / "config.json").write_text(json.dumps({}))
    assert folder.is_finished("sft")


def test_a_phase_that_comes_twice_is_added_up_and_one_that_fails_counts(monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 7.5, 10.0, 14.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.phase("rollout_s"):
            pass
    with pytest.raises(KeyError), watch.phase("update_s"):
        raise KeyError
    assert watch.seconds == {"rollout_s": 3.5, "update_s": 4.0}


def test_a_restart_by_torchrun_goes_on_in_the_folder_that_it_made(tmp_path, one_process):
    recipe = recipe_of({"out": tmp_path / "x"})
    folders = []
    for agent in ("host:1:5", "host:1:6"):  # another torchrun, and the same process number again
        folders.append(RunFolder.open(recipe, one_process, agent))
        folders[-1].create(recipe)
    assert [(folder.path.name, folder.is_resumed) for folder in folders] == [("x", False), ("x-2", False)]
    again = [RunFolder.open(recipe, one_process, agent) for agent in ("host:1:5", "host:1:6", "host:1:7", "")]
    assert [(f.path.name, f.is_resumed) for f in again] == [("x", True), ("x-2", True), ("x-3", False), ("x-3", False)]


def test_what_was_killed_before_it_had_a_recipe_takes_no_folder(tmp_path, one_process):
    (tmp_path / "x").mkdir()
    for name in ("recipe.toml.3f.partial", "recipe.toml.3f"):
        (tmp_path / "x" / name).write_text("{")
    folder = RunFolder.open(recipe_of({"out": tmp_path / "x"}), one_process, "host:1:5")
    assert (folder.path, folder.is_resumed) == (tmp_path / "x", False)
