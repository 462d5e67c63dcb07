"""The fault benchmark: a run that is killed and resumed ends as one that was not, and a difference would be told."""

import json
import shutil

import pytest

from bench.faults import Kill, differences, last_moment, table, timeline
from bench.main import main


@pytest.mark.slow
def test_killed_runs_are_resumed_exactly(tmp_path, capsys):
    assert main(["faults", "--kills", "2", "--seed", "3", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "faults.json").read_text())
    assert [kill["differences"] for kill in result["kills"]] == [[], []]
    assert [kill["aim"] == "any moment" for kill in result["kills"]] == [False, True]
    assert "| all | 2 | 2 |" in capsys.readouterr().out


def test_notes_tell_when_each_phase_was_and_what_was_going_on_at_the_end(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("0.0 +the run\n0.1 +update\n0.2 +writing\n0.4 -update\n0.5 +update\n0.9 -update\n1.0 -writing\n")
    assert timeline(notes) == {"update": [(0.1, 0.4), (0.5, 0.9)], "writing": [(0.2, 1.0)]}
    assert last_moment(notes) == (1.0, "the run")
    notes.write_text("0.0 +the run\n0.1 +step\n0.2 +writing\n0.3 +rollout\n")
    assert last_moment(notes) == (0.3, "rollout + writing")
    assert last_moment(tmp_path / "none") == (0.0, "starting")


@pytest.fixture
def two_runs(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / name
        (folder / "models" / "sft").mkdir(parents=True)
        (folder / "models" / "sft" / "model.safetensors").write_bytes(b"weights")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5, "step_s": seconds}) + "\n")
        (folder / "samples.jsonl").write_text("{}\n")
        (folder / "report.json").write_text(json.dumps({"held_out": {"sft": 0.75}, "wall_s": seconds}))
    return tmp_path / "a", tmp_path / "b"


def test_runs_that_differ_in_times_alone_are_the_same(two_runs):
    assert differences(*two_runs) == []


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("models/sft/model.safetensors", b"weighty"),
        ("metrics.jsonl", b'{"step": 1, "loss": 0.5000001, "step_s": 1.0}\n'),
        ("samples.jsonl", b"{}\n{}\n"),  # written twice
        ("report.json", b'{"held_out": {"sft": 0.5}}'),
        ("models/sft/more", b""),
    ],
)
def test_any_other_difference_is_named(two_runs, file, change):
    (two_runs[0] / file).write_bytes(change)
    assert differences(*two_runs) == [file]


def test_what_is_missing_is_named(two_runs):
    shutil.rmtree(two_runs[0] / "models")
    assert differences(*two_runs) == ["models/sft/model.safetensors"]


def test_the_table_counts_by_phase():
    kills = [Kill("any moment", 1.0, "update", True, ()), Kill("update", 2.0, "update", False, ("metrics.jsonl",))]
    lines = table(kills, 8.0, 0).splitlines()
    assert lines[-2:] == ["| update | 2 | 1 |", "| all | 2 | 1 |"]
    assert "Half-written checkpoints left behind: 1." in lines
