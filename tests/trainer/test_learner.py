"""One optimiser step: its schedule, its normalisation, and that ranks and micro-batches change nothing."""

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

from rollout.decoder import Decoder, DecoderConfig
from rollout.weights import full_tensors, load_decoder, whole
from tests.tiny_runs import SMALL, arguments, groups, records, settings, train
from trainer.config import GrpoConfig, ModelConfig, OptimConfig
from trainer.distributed import World
from trainer.learner import Learner, learning_rate
from trainer.logprobs import token_logprobs
from trainer.policy_loss import VALUES, PolicyLoss
from trainer.sft import negative_log_likelihood
from trainer.token_tree import Leaf, MicroBatch, TokenTree

ROOT = Path(__file__).resolve().parents[2]
OPTIM = OptimConfig(lr=1e-3, grad_clip=1e9)
POLICY = PolicyLoss(GrpoConfig(kl_coef=0.0), None)


@dataclass
class Step:
    """What one update reported, and the gradients that reached the optimiser (None: it was not run)."""

    metrics: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] | None = None


def update(learner: Learner, some: list[list[Leaf]], max_tokens: int = 4096, loss=POLICY, step: int = 0) -> Step:
    """An update whose gradients are looked at, not applied."""
    seen = Step()

    def look() -> None:
        seen.gradients = {n: p.grad.full_tensor().clone() for n, p in learner.decoder.named_parameters()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.optimizer, "step", look)
        seen.metrics = learner.update(some, loss, max_tokens, step, VALUES)
    return seen


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in full_tensors(learner.decoder)}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(tensor.detach().abs().max().item() for tensor in expected.values())
    for name, tensor in expected.items():
        assert (found[name] - tensor).detach().abs().max().item() <= tolerance * largest, name


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.2 + 0.8 * (2 + math.sqrt(2)) / 4, 0.6,
                    0.2 + 0.8 * (2 - math.sqrt(2)) / 4, 0.2]),
    ],
)  # fmt: skip
def test_the_rate_warms_up_to_lr_and_ends_at_final_lr(schedule, rates):
    config = OptimConfig(lr=1.0, final_lr=0.2, schedule=schedule, warmup_steps=4)
    assert [learning_rate(config, step, 9) for step in range(9)] == pytest.approx(rates, abs=1e-12)


@given(st.sampled_from(["linear", "cosine"]), st.integers(0, 20), st.integers(2, 40))
def test_after_the_warm_up_the_rate_never_rises(schedule, warmup_steps, num_more_steps):
    config = OptimConfig(lr=1e-3, final_lr=1e-5, schedule=schedule, warmup_steps=warmup_steps)
    num_steps = warmup_steps + num_more_steps
    rates = [learning_rate(config, step, num_steps) for step in range(num_steps)]
    assert rates[warmup_steps] == 1e-3
    assert rates[-1] == pytest.approx(1e-5, rel=1e-9)
    assert rates[:warmup_steps] == sorted(set(rates[:warmup_steps]))
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_run_of_one_step_takes_it_at_lr(schedule):
    assert learning_rate(OptimConfig(lr=0.5, final_lr=0.1, schedule=schedule), 0, 1) == 0.5


def test_loss_and_gradient_are_means_over_all_tokens_of_the_step(tiny_judge, one_process):
    """Against an unsharded decoder, group by group: nothing but a sum over tokens and one division."""
    some = groups(5)
    step = update(Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process), some)
    decoder = load_decoder(tiny_judge)
    total, entropy, gap, num_tokens = 0.0, 0.0, [], sum(len(leaf.completion) for group in some for leaf in group)
    for group in some:
        batch = MicroBatch.of([TokenTree.of(group)], torch.device("cpu"))
        logprob_T, entropy_T = token_logprobs(decoder, batch)
        loss_T, _ = POLICY(batch, logprob_T, entropy_T)
        (loss_T.sum() / num_tokens).backward()
        total, entropy = total + loss_T.double().sum().item(), entropy + entropy_T.double().sum().item()
        gap += (logprob_T - batch.values_T["old_logprob"]).abs().tolist()
    expected = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    assert_close(step.gradients, expected, 1e-5)
    assert step.metrics["loss"] == pytest.approx(total / num_tokens, abs=1e-6)
    assert step.metrics["entropy"] == pytest.approx(entropy / num_tokens, rel=1e-6)
    assert step.metrics["logprob_gap"] == pytest.approx(np.mean(gap), rel=1e-5)
    assert step.metrics["max_logprob_gap"] == pytest.approx(max(gap), rel=1e-5)
    assert step.metrics["num_tokens"] == num_tokens
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    assert step.metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("max_tokens", [32, 64, 300])
def test_loss_and_gradient_do_not_depend_on_micro_batches(tiny_judge, one_process, max_tokens):
    learner, some = Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process), groups(9)
    whole, cut = update(learner, some), update(learner, some, max_tokens)
    assert_close(cut.gradients, whole.gradients, 1e-5)
    assert cut.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-6)


def test_the_gradient_is_clipped_to_its_limit_and_reported_unclipped(tiny_judge, one_process):
    some = groups(4)
    free = update(Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process), some)
    limit = free.metrics["grad_norm"] / 4
    optim = OptimConfig(lr=1e-3, grad_clip=limit)
    clipped = update(Learner(tiny_judge, ModelConfig(), optim, 10, one_process), some)
    assert clipped.metrics["grad_norm"] == pytest.approx(free.metrics["grad_norm"], rel=1e-6)
    assert_close(clipped.gradients, {name: g / 4 for name, g in free.gradients.items()}, 1e-5)


def test_activation_checkpointing_changes_no_gradient(tiny_judge, one_process):
    some = groups(4)
    plain = update(Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process), some)
    frugal = update(Learner(tiny_judge, ModelConfig(activation_checkpointing=True), OPTIM, 10, one_process), some)
    assert_equal(frugal.gradients, plain.gradients)


def test_weights_that_stay_gathered_are_gathered_once_and_never_old(tiny_judge, one_process, monkeypatch):
    """In bfloat16, where what is gathered is a copy; between updates a forward pass alone gathers, too."""
    found, num_gathered = [], []
    gather = FSDPParam.init_all_gather_outputs
    monkeypatch.setattr(FSDPParam, "init_all_gather_outputs", lambda *x: num_gathered.append(1) or gather(*x))
    for keeps in (False, True):
        learner = Learner(tiny_judge, ModelConfig(dtype="bfloat16"), OPTIM, 4, one_process)
        learner.keeps_gathered = keeps
        num_weights, some, told = len(weights(learner)), groups(6), []
        for step in range(3):
            num_gathered.clear()
            told.append(learner.update(some, POLICY, 64, step, VALUES))
            # The head and the embedding may be there already, from the pass before.
            assert len(num_gathered) <= num_weights if keeps else len(num_gathered) > 4 * num_weights
            batch = MicroBatch.of([TokenTree.of(some[0])], one_process.device)
            with torch.no_grad():
                told.append(token_logprobs(learner.decoder, batch)[0].sum().item())
        found.append((told, weights(learner)))
    assert found[0][0] == found[1][0]
    assert_equal(found[1][1], found[0][1])
    assert found[0][0][1] != found[0][0][3]  # they do change


def test_a_pause_within_an_update_saves_what_was_there_before_it(tiny_judge, one_process):
    """A run that is asked to end leaves between micro-batches, while weights are gathered."""
    learner = Learner(tiny_judge, ModelConfig(dtype="bfloat16"), OPTIM, 4, one_process)
    learner.keeps_gathered = True
    learner.update(groups(6), POLICY, 64, 0, VALUES)  # so that there are moments
    before, seen = weights(learner), []

    def leave() -> None:
        model, optimizer = get_state_dict(learner.decoder, learner.optimizer)
        seen.append({name: whole(tensor).clone() for name, tensor in model.items()})
        assert len(optimizer["state"]) == len(before)

    with one_process.stop.paused_by(leave):
        learner.update(groups(6), POLICY, 64, 1, VALUES)
    assert len(seen) > 2
    for saved in seen:
        for name, tensor in before.items():
            assert torch.equal(saved[name], tensor), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


def test_an_error_within_an_update_leaves_the_weights_that_are_kept(tiny_judge, one_process):
    learner = Learner(tiny_judge, ModelConfig(dtype="bfloat16"), OPTIM, 4, one_process)
    learner.keeps_gathered = True
    before, num_seen = weights(learner), []

    def fails(*arguments):
        num_seen.append(1)
        if len(num_seen) == 3:
            raise RuntimeError("no such reward")
        return POLICY(*arguments)

    with pytest.raises(RuntimeError, match="no such reward"):
        learner.update(groups(6), fails, 64, 0, VALUES)
    for name, tensor in weights(learner).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name]), name


def test_reducing_each_micro_batch_gives_the_same_gradients(tiny_judge, one_process):
    some, often = groups(9), ModelConfig(reduce_each_micro_batch=True)
    once = update(Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process), some, 64)
    assert_close(update(Learner(tiny_judge, often, OPTIM, 10, one_process), some, 64).gradients, once.gradients, 1e-6)


@dataclass(frozen=True)
class Peers:
    """A rank whose peers hold `num_tokens` loss tokens and run `num_batches` micro-batches."""

    alone: World
    num_tokens: int
    num_batches: int

    def __getattr__(self, name: str):
        return getattr(self.alone, name)

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        return {"n": values["n"] + self.num_tokens} if values.keys() == {"n"} else values

    def maximum(self, value: int) -> int:
        return max(value, self.num_batches)


def test_a_rank_without_groups_still_runs_its_micro_batches_and_adds_nothing(tiny_judge, one_process):
    learner = Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process)
    learner.world = Peers(one_process, num_tokens=100, num_batches=3)
    step = update(learner, [])
    assert all(not gradient.any() for gradient in step.gradients.values())
    assert (step.metrics["loss"], step.metrics["entropy"], step.metrics["num_tokens"]) == (0.0, 0.0, 100)
    assert step.metrics["max_logprob_gap"] == -math.inf  # its peers' values are larger


def test_a_rank_with_fewer_micro_batches_fills_up_with_nothing(tiny_judge, one_process):
    learner, some = Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process), groups(3)
    alone = update(learner, some)
    learner.world = Peers(one_process, num_tokens=0, num_batches=5)
    among_peers = update(learner, some)
    assert_close(among_peers.gradients, alone.gradients, 1e-6)
    assert among_peers.metrics == pytest.approx(alone.metrics, rel=1e-6)


def test_a_gradient_that_is_not_finite_skips_the_step(tiny_judge, one_process):
    learner, some = Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process), groups(3)
    learner.update(some, POLICY, 4096, 0, VALUES)
    before, moments = weights(learner), json.dumps(_numbers(learner.optimizer.state_dict()))

    def broken(batch, logprob_T, entropy_T):
        return logprob_T / 0.0, {}

    metrics = learner.update(some, broken, 4096, 1, VALUES)
    assert metrics["skipped"] == 1.0
    assert not math.isfinite(metrics["grad_norm"])
    assert_equal(weights(learner), before)
    assert json.dumps(_numbers(learner.optimizer.state_dict())) == moments
    metrics = learner.update(some, POLICY, 4096, 2, VALUES)
    assert metrics["skipped"] == 0.0
    assert all(tensor.isfinite().all() for tensor in weights(learner).values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


def test_each_step_uses_its_own_rate(tiny_judge, one_process):
    optim = OptimConfig(lr=1e-3, final_lr=0.0, schedule="linear")
    learner, some = Learner(tiny_judge, ModelConfig(), optim, 3, one_process), groups(3)
    rates = []
    for step in range(3):
        before = weights(learner)
        rates.append(learner.update(some, negative_log_likelihood, 4096, step)["lr"])
        moved = max(float((tensor - before[name]).abs().max()) for name, tensor in weights(learner).items())
        # AdamW moves no weight further than a few times its rate.
        assert moved <= 4 * rates[-1]
        assert (moved > 0) == (rates[-1] > 0)
    assert rates == pytest.approx([1e-3, 5e-4, 0.0])


def test_a_step_without_one_loss_token_is_refused(tiny_judge, one_process):
    learner = Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process)
    with pytest.raises(ValueError, match="a step needs at least one loss token"):
        learner.update([], POLICY, 4096, 0, VALUES)


def test_the_replica_gets_the_learners_weights_exactly(tiny_judge, one_process):
    learner = Learner(tiny_judge, ModelConfig(), OPTIM, 10, one_process)
    learner.update(groups(3), POLICY, 4096, 0, VALUES)
    replica = Decoder(DecoderConfig.from_pretrained(tiny_judge))
    learner.copy_weights_to_(replica)
    assert_equal(dict(replica.named_parameters()), weights(learner))
    assert replica.lm_head.weight is replica.embed_tokens.weight
    original = load_decoder(tiny_judge)
    assert not torch.equal(replica.embed_tokens.weight, original.embed_tokens.weight)


WORKER = """
import json, os, sys
from trainer.main import main
codes = []
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    try:
        codes.append(main(arguments))
    except SystemExit as stop:  # a rank whose peer tells the mistake
        codes.append(stop.code)
print("codes", json.dumps(codes), flush=True)
sys.stderr.flush()
# Four process groups in one interpreter: their gloo threads may abort its teardown ("terminate called without an
# active exception"), after all that is tested here.
os._exit(0)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for number in sockets:
        number.bind(("127.0.0.1", 0))
    ports = [number.getsockname()[1] for number in sockets]
    for number in sockets:
        number.close()
    return ports


@pytest.fixture(scope="module")
def two_and_one(tiny_files, tiny_judge, tmp_path_factory):
    """Three recipes run by two processes and by one; a mistake made by two. Returns (folder, output of the ranks)."""
    folder = tmp_path_factory.mktemp("processes")
    # Shares of 3 and 2 rows, of 2 and 1 pairs, and in the last step of the epoch of 1 pair and none.
    from_files = settings(tiny_files) | {
        "model.path": tiny_judge, "sft.steps": 4, "sft.rows_per_step": 5, "sft.optim.lr": 1e-3, "sft.dev_every": 3,
        "sft.tokens_per_micro_batch": 150, "grpo.steps": 4, "grpo.inner_epochs": 2, "grpo.tokens_per_micro_batch": 200,
        "grpo.kl_coef": 0.05, "grpo.entropy_coef": 0.01, "grpo.dev_every": 2, "grpo.checkpoint_every": 2,
    }  # fmt: skip
    embedded = {f"model.small.{key}": value for key, value in SMALL.items()} | {
        "data.source": "embedded", "data.embedded.num_sft_pairs": 12, "data.embedded.num_rl_pairs": 5,
        "data.embedded.num_dev_pairs": 3, "data.embedded.num_held_out_pairs": 5, "model.small.vocab_size": 400,
        "prompt.template": "bare", "prompt.rubrics_file": ROOT / "patarm_core/embedded/rubrics.toml",
        "rollout.num_rollouts": 3, "rollout.max_completion_tokens": 12, "sft.steps": 4, "sft.rows_per_step": 7,
        "sft.optim.lr": 3e-3, "grpo.steps": 3, "grpo.pairs_per_step": 3, "grpo.optim.lr": 1e-3, "eval.votes": [1],
        "eval.num_judgments": 1, "grpo.advantage": "reinforce++", "grpo.group": "pair",
    }  # fmt: skip
    # Of two processes, and of several micro-batches, each is reduced by itself.
    often = {"model.reduce_each_micro_batch": True, "sft.tokens_per_micro_batch": 600}
    # Pairs are dropped and others drawn: only the format earns or costs anything.
    dynamic = settings(tiny_files) | {
        "model.path": tiny_judge, "stages": ["grpo"], "data.held_out": "", "rollout.num_rollouts": 2,
        "grpo.margin.kind": "constant", "grpo.margin.value": 0.0, "grpo.refill_rounds": 2, "grpo.steps": 3,
        "grpo.overlong_buffer_tokens": 4, "grpo.ratio": "sequence", "grpo.inner_epochs": 2, "grpo.importance_cap": 2.0,
        "grpo.kl_coef": 0, "grpo.normalization": "sequence", "grpo.normalize_rewards": "separately",
    }  # fmt: skip
    mistake = settings(tiny_files) | {"data.pairs": folder / "nowhere.jsonl", "out": folder / "mistake"}
    # Of two processes, each judges one pair of a step at a time, so the third goes to the first that is done.
    few_rows = {"rollout.max_rows": 8}
    of_two = [
        from_files | few_rows | {"out": folder / "files-2"},
        embedded | often | {"out": folder / "embedded-2"},
        dynamic | {"out": folder / "dynamic-2"},
        mistake,
    ]
    jobs = json.dumps(list(zip(free_ports(4), map(arguments, of_two))))
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, jobs], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    train(from_files | {"out": folder / "files-1"})
    train(embedded | {"out": folder / "embedded-1"})
    train(dynamic | {"out": folder / "dynamic-1"})
    return folder, outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["files", "embedded", "dynamic"])
def test_two_processes_give_the_numbers_of_one(two_and_one, name):
    folder, _ = two_and_one
    of_one, of_two = (records(folder / f"{name}-{number}") for number in (1, 2))
    assert [(r["stage"], r["step"]) for r in of_two] == [(r["stage"], r["step"]) for r in of_one]
    for one, two in zip(of_one, of_two, strict=True):
        assert two.keys() == one.keys()
        for key, value in one.items():
            if key in ("tokens_per_s", "rollout_idle_share") or key.endswith("_s"):
                continue
            if key == "pairs_by_rank":
                assert (len(two[key]), [sum(two[key])]) == (2, value)
                continue
            if isinstance(value, str):
                assert two[key] == value
            elif key == "loss":
                assert abs(two[key] - value) < 1e-5, (one["stage"], one["step"])
            else:  # gaps are rounding errors; what is counted is equal
                assert two[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (one["stage"], one["step"], key)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_and_the_report_of_one(two_and_one):
    folder, _ = two_and_one
    for name in ("files", "embedded"):
        one, two = (load_decoder(folder / f"{name}-{number}" / "models" / "grpo") for number in (1, 2))
        assert_close(dict(two.named_parameters()), dict(one.named_parameters()), 1e-3)
        reports = [json.loads((folder / f"{name}-{number}" / "report.json").read_text()) for number in (1, 2)]
        assert reports[0]["held_out"] == reports[1]["held_out"]
        pieces = ("data", "models/initial") if name == "embedded" else ()
        for piece in pieces:
            for file in sorted((folder / f"{name}-1" / piece).iterdir()):
                assert file.read_bytes() == (folder / f"{name}-2" / piece / file.name).read_bytes(), file


@pytest.mark.slow
def test_the_comparison_is_about_something(two_and_one):
    """Rewards differ within groups, the policy moves, and a rank was without a pair in step 3."""
    folder, _ = two_and_one
    steps = [record for record in records(folder / "files-2") if record["stage"] == "grpo"]
    assert min(step["zero_advantage_share"] for step in steps) < 1
    assert all(step["grad_norm"] > 1e-3 for step in steps)
    assert steps[-1]["kl"] > 0
    assert [step["clip_share"] for step in steps] != [0.0] * 4
    contexts = [len({s["id"] for s in records(folder / "files-1", "samples.jsonl") if s["step"] == n}) for n in (1, 3)]
    assert contexts == [2, 1]
    dynamic = records(folder / "dynamic-2")
    assert sum(step["pairs_dropped"] for step in dynamic) > 0 and max(step["rollout_rounds"] for step in dynamic) > 1


@pytest.mark.slow
def test_of_two_processes_one_tells_a_mistake(two_and_one):
    folder, outputs = two_and_one
    assert [output[0].splitlines()[-1] for output in outputs] == ["codes [0, 0, 0, 1]"] * 2
    told = [line for output in outputs for line in output[1].splitlines() if "error" in line]
    assert told == [f"error: {folder / 'nowhere.jsonl'}: no such file"]
    assert not (folder / "mistake").exists()


def _numbers(state):
    """Tensors of an optimiser's state as lists."""
    if isinstance(state, torch.Tensor):
        return getattr(state, "full_tensor", lambda: state)().tolist()
    if isinstance(state, dict):
        return {str(key): _numbers(value) for key, value in state.items()}
    return [_numbers(value) for value in state] if isinstance(state, list | tuple) else state
