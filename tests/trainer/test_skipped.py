"""Steps without a finite loss are skipped and counted; after a few in a row the run stops and leaves its evidence."""

import json
import math

import pytest

import trainer.sft
from tests.tiny_runs import arguments, records, settings
from trainer.main import main
from trainer.sft import negative_log_likelihood


def fails_in(*steps: int):
    """The loss of SFT, in one micro-batch a step, not a number in some steps (from 1)."""
    count = [0]

    def loss(batch, logprob_T, entropy_T):
        count[0] += 1
        loss_T, metrics = negative_log_likelihood(batch, logprob_T, entropy_T)
        return loss_T * (math.nan if count[0] in steps else 1.0), metrics

    return loss


@pytest.fixture
def job(tiny_files, tiny_judge, tmp_path):
    return settings(tiny_files) | {
        "model.path": tiny_judge, "data.held_out": "", "out": tmp_path / "run", "stages": ["sft"], "sft.steps": 6,
        "sft.checkpoint_every": 1, "sft.optim.max_skipped_steps": 2, "sft.tokens_per_micro_batch": 8192,
    }  # fmt: skip


def test_single_steps_are_skipped_and_the_run_goes_on(job, monkeypatch, capsys):
    monkeypatch.setattr(trainer.sft, "negative_log_likelihood", fails_in(2, 4, 6))
    assert main(arguments(job)) == 0
    assert [row["skipped"] for row in records(job["out"])] == [0, 1, 0, 1, 0, 1]
    assert "sft: 100%" in capsys.readouterr().err  # the bar ends full


def test_after_some_in_a_row_the_run_stops_with_its_evidence(job, monkeypatch, capsys):
    monkeypatch.setattr(trainer.sft, "negative_log_likelihood", fails_in(3, 4))
    assert main(arguments(job)) == 1
    place = job["out"] / "evidence" / "sft-000004"
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told == [
        "error: loss or gradient was not finite in 2 optimiser steps in a row (optim.max_skipped_steps); "
        f"micro-batches, gradient norms and the checkpoint before are in {place}"
    ]
    # Strictly: no NaN, which is no JSON.
    evidence = json.loads((place / "evidence.json").read_text(), parse_constant=pytest.fail)
    assert (evidence["stage"], evidence["step"]) == ("sft", 4)
    (batch,) = evidence["micro_batches"]
    assert batch["loss"] == "nan"
    assert (len(batch["of"]), batch["of"][0][:9]) == (16, "judgment ")
    assert "nan" in evidence["gradient_norms"].values()
    assert (place / "recipe.toml").read_bytes() == (job["out"] / "recipe.toml").read_bytes()
    assert (place / "step-000003" / "manifest.json").is_file()
    assert [row["skipped"] for row in records(job["out"])] == [0, 0, 1]


def test_a_resumed_run_goes_on_counting(job, monkeypatch):
    monkeypatch.setattr(trainer.sft, "negative_log_likelihood", fails_in(3, 4))
    assert main(arguments(job)) == 1
    monkeypatch.setattr(trainer.sft, "negative_log_likelihood", fails_in(1))  # of this process: step 4
    assert main(arguments(job | {"resume": True})) == 1
    monkeypatch.setattr(trainer.sft, "negative_log_likelihood", negative_log_likelihood)
    assert main(arguments(job | {"resume": True})) == 0
