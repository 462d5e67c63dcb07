"""The benchmark of a step on a GPU, run on a CPU at the least size: what it reports, and that an error costs one n."""

from __future__ import annotations

import json

import pytest

from bench import step_gpu
from bench.remote import EngineError
from bench.step_gpu import run_step_gpu, update_flops
from bench.step_ours import OurStep
from bench.step_time import Options
from rollout.weights import save_decoder
from tests.models import config, random_decoder

SHAPE = config(vocab_size=96)


class Here:
    """`Remote` without a process of its own."""

    def __init__(self, make, *arguments):
        self._made = make(*arguments)

    def call(self, method, *arguments):
        try:
            return getattr(self._made, method)(*arguments)
        except RuntimeError as error:
            raise EngineError(str(error)) from None

    def close(self):
        if isinstance(self._made, OurStep):
            self._made.__exit__()


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(step_gpu, "_require_gpu", lambda: None)
    monkeypatch.setattr(step_gpu, "Remote", Here)
    monkeypatch.setattr(step_gpu, "MODELS", {"tiny": SHAPE})
    monkeypatch.setattr(step_gpu, "_TOKENS_PER_MICRO_BATCH", {"tiny": 2048})
    monkeypatch.setattr(step_gpu, "_Weights", lambda model, folder: save_decoder(random_decoder(SHAPE), folder))
    monkeypatch.setattr(step_gpu, "_peak_flops", lambda: 1e12)
    monkeypatch.setattr(OurStep, "peak_bytes", lambda self: 3 << 30)


def options(*rollouts: int) -> Options:
    return Options(pairs=2, rollouts=rollouts, steps=2, shorten=40.0)


def test_records_of_every_n(on_a_cpu, tmp_path, capsys):
    result = run_step_gpu(options(2, 3), ["tiny"], tmp_path)
    assert json.loads((tmp_path / "step_gpu.json").read_text())["records"] == result["records"]
    assert [record["num_rollouts"] for record in result["records"]] == [2, 3]
    for record in result["records"]:
        n = record["num_rollouts"]
        work = options(n).work(n, 1, SHAPE.vocab_size)
        assert record["loss_tokens"] == work.num_new_tokens  # with lengths of its own, whatever the warm-ups had
        assert len(record["turns"]["update_s"]) == 2
        assert record["update_flops"] == update_flops(SHAPE, record)
        assert record["mfu"] == pytest.approx(record["update_flops"] / record["update_s"] / 1e12)
        assert record["mfu_without_optimizer"] > record["mfu"]
        assert record["peak_bytes"] == 3 << 30
    told = capsys.readouterr()
    assert "| tiny | 2 |" in told.out and "| tiny | 3 |" in (tmp_path / "step_gpu.md").read_text()
    for what in ("weights", "learner and engine", "warm-up, rollout", "n = 3, update"):
        assert f"tiny, {what}" in told.err
    assert "8/8" in told.err  # weights, learner, two warm-ups, two turns of each n


def test_an_error_costs_its_n_alone(on_a_cpu, tmp_path, monkeypatch, capsys):
    learn = OurStep.learn

    def fails_at_3(self, work, turn):
        if len(work.lengths[0]) == 3 and turn == 1:
            raise RuntimeError("CUDA out of memory")
        return learn(self, work, turn)

    monkeypatch.setattr(OurStep, "learn", fails_at_3)
    result = run_step_gpu(options(2, 3, 4), ["tiny"], tmp_path)
    assert [record.get("error") for record in result["records"]] == [None, "CUDA out of memory", None]
    assert "| tiny | 3 | CUDA out of memory |" in capsys.readouterr().out


def test_what_cannot_be_run_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"--models 2b: must be of 1\.7b, 4b, 8b"):
        run_step_gpu(options(2), ["2b"], None)
    monkeypatch.setattr(step_gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: no GPU is there"):
        run_step_gpu(options(2), ["4b"], None)
