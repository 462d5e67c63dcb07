"""The benchmark of a GRPO step: its work, its counts, its ratios, and a run of all parts at the least size."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import step_time
from bench.main import main
from bench.remote import EngineError, Remote
from bench.step_checks import Checks
from bench.step_estimate import table_8
from bench.step_gpu import kv_gib, update_flops
from bench.step_memory import peak_memory
from bench.step_ours import OurStep, Setup, update_size
from bench.step_tables import gpu_table, ratio
from bench.step_time import Options, of_turns, run_step_time
from bench.step_workload import pair_work
from rollout.shapes import QWEN3
from rollout.weights import save_decoder
from tests.models import config, random_decoder
from trainer.config import ModelConfig
from trainer.token_tree import Leaf

V = 96


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 5), st.sampled_from([1.0, 12.0, 100.0]))
def test_fewer_judgments_are_the_first_of_more_and_turns_differ_in_tokens_alone(num_pairs, n, turn, shorten):
    few, many = pair_work(num_pairs, n, shorten, V), pair_work(num_pairs, n + 3, shorten, V)
    assert few.contexts == many.contexts and len(few.contexts) == 2 * num_pairs
    assert [lengths[:n] for lengths in many.lengths] == few.lengths
    turned = pair_work(num_pairs, n, shorten, V, turn + 1)
    assert turned.lengths == few.lengths and turned.contexts != few.contexts
    assert list(map(len, turned.contexts)) == list(map(len, few.contexts))
    assert all(0 <= token < V - 1 for context in turned.contexts for token in context)


def test_lengths_have_the_means_that_are_documented():
    work = pair_work(500, 8, 1, V)
    lengths = torch.tensor(work.lengths, dtype=torch.float32)
    assert lengths.mean().item() == pytest.approx(700, rel=0.05) and lengths.max() <= 4096
    contexts = torch.tensor(list(map(len, work.contexts)), dtype=torch.float32)
    assert contexts.mean().item() == pytest.approx(1200, rel=0.03)
    # Sides of a pair share a trunk of half of that.
    assert work.num_distinct_tokens / len(contexts) == pytest.approx(900, rel=0.03)


def test_the_size_of_an_update_is_that_of_its_layout():
    leaves = [Leaf([1, 2, 3], [4, 5]), Leaf([1, 2, 3], [6]), Leaf([1, 7], [8, 9, 9])]
    tree = update_size([leaves], "tree", 1024)
    flat = update_size([leaves], "flat", 1024)
    assert (tree["update_tokens"], flat["update_tokens"]) == (3 + 1 + 3, 4 + 3 + 4)
    assert tree["loss_tokens"] == flat["loss_tokens"] == 6
    assert flat["attention_pairs"] == 10 + 6 + 10


def test_medians_spread_and_ratios_leave_the_warm_up_out():
    turns = [
        {"update_s": s, "tokens": 7, "update_peak": p} for s, p in ((99.0, 5), (3.0, None), (1.0, None), (2.0, None))
    ]
    found = of_turns(turns)
    assert found == {"update_s": 2.0, "tokens": 7, "update_peak": 5, "turns": {"update_s": [3.0, 1.0, 2.0]}}
    other = of_turns([{"update_s": s} for s in (1.0, 6.0, 4.0, 2.0)])
    assert ratio(other, found, "update_s") == "2.00 (1.00-4.00)"
    assert ratio(None, found, "update_s") == "-"


def test_a_peak_is_what_is_held_at_one_time():
    with peak_memory(torch.device("cpu")) as peak:
        for _ in range(3):
            torch.ones(16 << 20)  # 64 MiB, given back each time
    if peak.num_bytes is None:
        pytest.skip("this system counts no peaks")
    assert 60 << 20 < peak.num_bytes < 150 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_decoder(random_decoder(config(vocab_size=V)), path)
    return str(path)


def test_what_goes_wrong_elsewhere_is_told_on_one_line():
    with pytest.raises(EngineError, match=r"^ValueError: invalid literal for int\(\) with base 10: 'x'$"):
        Remote(int, "x")
    remote = Remote(list, [1, 2])
    try:
        assert remote.call("index", 2) == 1
        with pytest.raises(EngineError, match=r"^ValueError: .*is not in list$"):
            remote.call("index", 3)
        assert remote.call("copy") == [1, 2]  # it goes on
    finally:
        remote.close()
    assert remote._process.exitcode == 0  # it has ended by itself, and left no semaphores behind


def test_tree_and_flat_take_the_same_step(folder):
    """In one process and on the same rollouts: lengths as asked for, equal gradients, fewer tokens on trees."""
    work = pair_work(2, 3, 100, V)
    with OurStep(Setup(folder=folder)) as tree:
        rollout = tree.roll_out(work, 0)
        drawn = tree.drawn()
        of_tree = tree.learn(work, 0)
    with OurStep(Setup(folder=folder, model=ModelConfig(layout="flat"))) as flat:
        flat.take(drawn)
        of_flat = flat.learn(work, 0)
    written = [[len(completion.token_ids) for completion in side] for pair in sorted(drawn) for side in drawn[pair]]
    assert written == [list(lengths) for lengths in work.lengths]
    # The last token of a context is read by each of its samples, in the step that draws the first token.
    assert rollout["rollout_tokens"] == work.num_distinct_tokens - len(work.contexts) + work.num_new_tokens
    assert of_tree["grad_norm"] == pytest.approx(of_flat["grad_norm"], rel=1e-4) and of_tree["grad_norm"] > 0
    num_contexts = sum(len(c) * len(n) for c, n in zip(work.contexts, work.lengths))
    assert of_flat["update_tokens"] == num_contexts + work.num_new_tokens - sum(map(len, work.lengths))
    assert of_tree["update_tokens"] < 0.6 * of_flat["update_tokens"]


def test_the_gradient_does_not_depend_on_layout_and_micro_batches():
    found = Checks(config(vocab_size=V)).differences(pair_work(2, 2, 60, V))
    assert 0 < found["tree_flat"] <= 1e-12 and 0 < found["micro_batches"] <= 1e-12


def test_both_layouts_in_turns(tmp_path, capsys):
    options = Options(rollouts=(1, 2), steps=1, pairs=2, shorten=100, parts=("flat",))
    result = run_step_time(options, tmp_path, config(vocab_size=V, max_position_embeddings=512))
    assert json.loads((tmp_path / "step.json").read_text())["records"] == result["records"]
    for record in result["records"]:
        tree, flat = record["tree"], record["flat"]
        assert tree["step_s"] > tree["rollout_s"] + tree["update_s"] > 0 and "trl" not in record
        assert tree["update_tokens"] < flat["update_tokens"] and tree["rollout_s"] == flat["rollout_s"]
    assert (tmp_path / "step.md").read_text().strip() in capsys.readouterr().out


@pytest.mark.slow
def test_invariance_and_two_processes(tmp_path):
    options = Options(rollouts=(2,), steps=1, pairs=2, shorten=100, parts=("scaling", "invariance"))
    result = run_step_time(options, tmp_path, config(vocab_size=V, max_position_embeddings=512))
    assert result["invariance"]["largest_logprob_gap"] == 0
    assert result["scaling"]["two"]["step_s"] > 0


def test_a_peer_that_is_not_installed_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(step_time, "_make_trl", _not_installed)
    with pytest.raises(ValueError, match=r"No module named 'trl'; pip install -e"):
        run_step_time(Options(rollouts=(2,), parts=("trl",)), None, config(vocab_size=V))


def _not_installed(folder):
    raise ModuleNotFoundError("No module named 'trl'")


@pytest.mark.slow
def test_trl_takes_the_same_step(folder):
    pytest.importorskip("trl")
    trl = Remote(step_time._make_trl, folder)
    try:
        for turn, (how, rows) in enumerate((("generate", 4), ("continuous batching", 8))):
            work = pair_work(1, 4, 100, V, turn)
            trl.call("prepare", work, how, rows)
            step = trl.call("step", work, turn == 0)  # refuses lengths that were not asked for
            longest = max(map(max, work.lengths)) + max(map(len, work.contexts))
            assert step["update_tokens"] == 8 * longest and step["step_s"] > step["rollout_s"] > 0
            assert (step["update_peak"] is None) == (turn > 0)
    finally:
        trl.close()


def test_flops_are_six_per_parameter_and_token_and_attention():
    shape = QWEN3["Qwen3-8B"]
    size = {"update_tokens": 1000, "loss_tokens": 0, "attention_pairs": 0}
    blocks = shape.num_parameters - 2 * shape.vocab_size * shape.hidden_size
    assert update_flops(shape, size) == 6 * blocks * 1000
    assert update_flops(shape, size | {"loss_tokens": 10}) - 6 * blocks * 1000 == 6 * 151_936 * 4096 * 10
    assert update_flops(shape, size | {"attention_pairs": 1}) - 6 * blocks * 1000 == 12 * 4096 * 36
    # 147,456 B per token (FIELD_NOTES), half as much again
    work = pair_work(1, 1, 1, 96)
    assert kv_gib(work, shape) == 1.5 * 147_456 * (work.num_distinct_tokens + work.num_new_tokens) / 2**30


def test_the_estimate_grows_with_n_and_stands_beside_the_paper():
    of_8b = [row for row in table_8() if row["model"] == "Qwen3-8B"]
    assert [(row["num_rollouts"], row["paper_s"]) for row in of_8b] == [(4, 125), (8, 246), (16, 486)]
    assert of_8b[0]["step_s"] < of_8b[1]["step_s"] < of_8b[2]["step_s"]
    assert all(row["step_s"] == pytest.approx(row["rollout_s"] + row["update_s"]) for row in of_8b)


def test_a_gpu_table_holds_results_and_errors():
    turns = {"rollout_s": [1.0], "update_s": [3.0], "step_s": [4.0]}
    right = {
        "model": "4b", "num_rollouts": 8, "update_tokens": 6000, "rollout_s": 1.0, "update_s": 3.0, "step_s": 4.0,
        "turns": turns, "update_tokens_per_s": 2000.0, "mfu": 0.45, "mfu_without_optimizer": 0.5, "optimizer_s": 0.3,
        "peak_bytes": 2 << 30,
    }  # fmt: skip
    machine = {"device": "1 x GPU", "commit": "abc", "torch": "2"}
    wrong = {"model": "8b", "num_rollouts": 8, "error": "OutOfMemoryError: no"}
    text = gpu_table({"machine": machine, "options": {"pairs": 4}, "records": [right, wrong]})
    assert (
        "| 4b | 8 | 6,000 | 1.00 (1.00-1.00) | 3.00 (3.00-3.00) | 0.30 | 4.00 (4.00-4.00) | 25% | 2,000 "
        "| 45.0% | 50.0% | 2.0 |" in text
    )
    assert "| 8b | 8 | OutOfMemoryError: no |" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rollouts", "0"], "--rollouts must be at least 1, got 0"),
        (["--rollouts", "4,x"], "--rollouts 4,x: must be whole numbers, comma-separated"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--pairs", "-1"], "--pairs must be at least 1, got -1"),
        (["--shorten", "-2"], "--shorten must be positive, got -2.0"),
        (["--only", "flat,verl"], "--only verl: must be of flat, trl, scaling, invariance"),
        (["--device", "cuda", "--models", "3b"], "--models 3b: must be of 1.7b, 4b, 8b"),
    ],
)
def test_an_argument_that_makes_no_sense_is_one_line(arguments, message, capsys):
    assert main(["step", *arguments]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(message)
