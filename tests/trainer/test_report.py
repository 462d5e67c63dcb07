"""The tables and the picture at the end of a run."""

import sys

import numpy as np
import pytest

from eval.tables import accuracy_table, task_table
from trainer.report import draw_curves, time_table


def row(votes: int, accuracy: float, **changes) -> dict:
    return {
        "votes": votes, "num_pairs": 400, "num_right": round(400 * accuracy), "num_ties": 3, "num_unscored": 2,
        "accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.04, "accuracy_ties_half": accuracy + 0.004,
        "margin": 1.234,
    } | changes  # fmt: skip


def result(accuracy: float, **changes) -> dict:
    by_task = {"chat": row(8, accuracy + 0.1), "math": row(8, accuracy - 0.1)}
    return {"valid_rate": 0.987, "votes": [row(1, accuracy - 0.02, **changes), row(8, accuracy)], "by_task": by_task}


RESULTS = {"initial": result(0.5, margin=None), "sft": result(0.7), "grpo": result(0.85)}
DEV = {"dev_accuracy": 0.7, "dev_margin": 0.4, "dev_valid_rate": 0.95}
SFT = [
    {"stage": "sft", "step": n + 1, "loss": 3.0, "entropy": 2 - n / 10, "step_s": 0.5 + n, "tokens_per_s": 1000.0}
    for n in range(5)
]
GRPO = [
    {
        "stage": "grpo", "step": n + 1, "pair_accuracy": 0.6 + n / 10, "margin": n / 2, "valid_rate": 0.9,
        "entropy": 1.0, "step_s": 2.0, "sync_s": 0.1, "rollout_s": 1.0, "wait_s": 0.2, "reward_s": 0.05,
        "update_s": [0.7, 0.9, 0.8][n], "tokens_per_s": 12_345.6, **(DEV | {"checkpoint_s": 3.25} if n == 2 else {}),
    }
    for n in range(3)
]  # fmt: skip
RECORDS = SFT + GRPO


def test_accuracy_comes_with_its_interval_ties_and_unscored_pairs():
    assert accuracy_table({"sft": result(0.7), "initial": result(0.5, margin=None)}) == (
        "| model | votes | accuracy | 95 % interval | ties as half | ties | unscored | margin "
        "| valid judgments | pairs |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        "| after SFT | 1 | 68.0% | 63.0% - 72.0% | 68.4% | 3 | 2 | +1.23 | 98.7% | 400 |\n"
        "| after SFT | 8 | 70.0% | 65.0% - 74.0% | 70.4% | 3 | 2 | +1.23 | 98.7% | 400 |\n"
        "| before SFT | 1 | 48.0% | 43.0% - 52.0% | 48.4% | 3 | 2 | - | 98.7% | 400 |\n"
        "| before SFT | 8 | 50.0% | 45.0% - 54.0% | 50.4% | 3 | 2 | +1.23 | 98.7% | 400 |"
    )


def test_every_task_has_a_column_with_intervals_and_numbers_of_pairs():
    assert task_table({"sft": result(0.7), "grpo": result(0.85)}) == (
        "| model | chat | math |\n|---|---:|---:|\n"
        "| after SFT | 80.0% (75.0% - 84.0%), 400 | 60.0% (55.0% - 64.0%), 400 |\n"
        "| after GRPO | 95.0% (90.0% - 99.0%), 400 | 75.0% (70.0% - 79.0%), 400 |"
    )


def test_without_sft_the_first_model_is_where_the_run_starts():
    rows = task_table({"initial": result(0.5), "grpo": result(0.85)}).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| start", "| after GRPO"]


def test_times_are_medians_per_stage_and_phase():
    assert time_table(RECORDS) == (
        "| stage | steps | s/step | sync | rollout | wait | reward | update | tokens/s | s/checkpoint |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        "| sft | 5 | 2.50 | - | - | - | - | - | 1,000 | - |\n"
        "| grpo | 3 | 2.00 | 0.10 | 1.00 | 0.20 | 0.05 | 0.80 | 12,346 | 3.25 |"
    )


@pytest.mark.parametrize(
    ("records", "results"),
    [(RECORDS, RESULTS), (RECORDS, {}), (SFT, {"sft": RESULTS["sft"]}), (GRPO, RESULTS), ([], {})],
    ids=["all", "no held-out pairs", "SFT alone", "GRPO alone", "nothing"],
)
def test_the_curves_are_one_png(records, results, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    assert draw_curves(records, results, tmp_path / "curves.png") is True
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(tmp_path / "curves.png")
    assert pixels.shape[0] > 600 and pixels.shape[1] > 1000
    is_ink = (pixels[..., :3] < 0.9).any(-1)
    assert 0.002 < is_ink.mean() < 0.5


def test_every_curve_that_was_logged_is_drawn(tmp_path, monkeypatch):
    """Stages follow on one another, each one unit wide: 5 steps of SFT end at 1, 3 of GRPO at 2."""
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    draw_curves(RECORDS, RESULTS, tmp_path / "curves.png")
    axes = pyplot.gcf().axes
    lines = {
        (axis.get_title().split(" ")[0], line.get_label()): [np.round(x, 3).tolist() for x in line.get_data()]
        for axis in axes
        for line in axis.get_lines()
        if not line.get_label().startswith("_")
    }
    monkeypatch.undo()
    pyplot.close("all")
    assert lines["accuracy", "training pairs, mean of n"] == [[1.333, 1.667, 2.0], [0.6, 0.7, 0.8]]
    assert lines["accuracy", "dev pairs or prompts"] == [[2.0], [0.7]]
    assert lines["margin:", "training pairs"] == [[1.333, 1.667, 2.0], [0.0, 0.5, 1.0]]
    assert lines["share", "training pairs"] == [[1.333, 1.667, 2.0], [0.9] * 3]
    assert lines["entropy", "sampled or SFT tokens"][0] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.333, 1.667, 2.0]


def test_without_matplotlib_there_is_no_picture_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_curves(RECORDS, RESULTS, tmp_path / "curves.png") is False
    assert list(tmp_path.iterdir()) == []
