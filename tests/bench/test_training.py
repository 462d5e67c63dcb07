"""A run of the trainer in a process of its own: begun, gone on with, or taken as it is."""

from types import SimpleNamespace

import pytest

from bench import training
from bench.training import ROOT, resolved, train
from patarm_core.recipe import to_toml

RECIPE = [str(ROOT / "trainer" / "recipes" / "quickstart.toml")]


def test_a_run_that_is_there_is_taken_if_it_is_of_the_same_recipe(tmp_path, monkeypatch):
    folder, started = tmp_path / "base", []

    def run(command, env, **_):
        """Fails once; the trainer writes its recipe first and its report last."""
        started.append((command[2:], env.get("OMP_NUM_THREADS")))
        folder.mkdir(exist_ok=True)
        if len(started) == 1:
            (folder / "recipe.toml").write_text(to_toml(resolved(RECIPE, ["seed=1", f"out={folder}"])))
            return SimpleNamespace(returncode=1, stderr="step 3\nerror: too hot\n")
        (folder / "report.md").touch()
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(training.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"main\.py .*: failed with status 1: error: too hot"):
        train(RECIPE, ["seed=1"], folder, threads=3)
    for _ in range(2):
        train(RECIPE, ["seed=1"], folder, threads=3)
    asked = [[*RECIPE, "seed=1", f"out={folder}", f"resume={resumed}"] for resumed in ("false", "true")]
    assert started == [(one, "3") for one in asked]
    for settings in (["seed=2"], ["seed=1", "sft.steps=7"]):
        with pytest.raises(ValueError, match=r"recipe\.toml: \S+: the run began with"):
            train(RECIPE, settings, folder)
    train(RECIPE, ["seed=1", "sft.tokens_per_micro_batch=4096"], folder)  # changes no result
    assert len(started) == 2


def test_a_run_that_ends_without_a_word_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(training.subprocess, "run", lambda command, **_: SimpleNamespace(returncode=-9, stderr=""))
    with pytest.raises(ValueError, match="failed with status -9: it said nothing"):
        train(RECIPE, ["seed=1"], tmp_path / "base")
