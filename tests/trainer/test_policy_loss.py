"""Every objective's loss and gradient against its plain definition in float64, in one micro-batch or in many.

T loss entries   S completions
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patarm_core.loss_weights import StepCounts, token_weight
from trainer import policy_loss as module
from trainer.config import GrpoConfig
from trainer.policy_loss import AGREEMENT, PolicyLoss, update_on
from trainer.token_tree import Leaf, MicroBatch, TokenTree

OBJECTIVES = {
    "grpo": GrpoConfig(normalization="sequence", kl_coef=0.04),
    "dapo": GrpoConfig(clip_high=0.28, kl_coef=0.0),
    "dr_grpo": GrpoConfig(advantage="dr_grpo", normalization="constant", kl_coef=0.0),
    "gspo": GrpoConfig(ratio="sequence", normalization="sequence", clip_low=0.03, clip_high=0.04, kl_coef=0.0),
    "gspo with all": GrpoConfig(
        ratio="sequence",
        clip_high=0.28,
        dual_clip=1.5,
        kl_coef=0.3,
        kl_estimator="k2",
        entropy_coef=0.2,
        importance_cap=1.3,
    ),
    "tokens with all": GrpoConfig(
        normalization="constant", dual_clip=1.5, kl_coef=0.3, kl_estimator="k1", entropy_coef=0.2, importance_cap=1.3
    ),
}
MOST = 12  # tokens of a completion


def problem(lengths: list[int], seed: int) -> list[dict[str, np.ndarray]]:
    """Of each completion: log-probs before and after an update, of the rollout and of the reference, and the rest."""
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        before = -np.abs(rng.normal(0, 2, length))
        made.append(
            {
                "before": before,
                "logprob": before + rng.normal(0, 0.3, length),
                "old_logprob": before + rng.normal(0, 0.3, length),
                "reference": before + rng.normal(0, 0.5, length),
                "entropy": np.abs(rng.normal(0, 2, length)),
                "advantage": np.full(length, rng.choice([rng.normal(), 0.0], p=[0.8, 0.2])),
            }
        )
    return made


def by_definition(config: GrpoConfig, completions: list[dict[str, np.ndarray]]) -> tuple[float, list[np.ndarray]]:
    """The loss of a step and its gradient by the log-probs of each completion."""
    counts = StepCounts.of([len(c["logprob"]) for c in completions])
    leaves, total = [], torch.zeros((), dtype=torch.float64)
    for arrays in completions:
        of = {name: torch.tensor(x, dtype=torch.float64) for name, x in arrays.items()}
        x, A = of["logprob"].requires_grad_(), float(of["advantage"][0])
        leaves.append(x)
        old = of["before"] if config.importance_cap else of["old_logprob"]
        log_ratio = x - old
        if config.ratio == "sequence":
            log_ratio = log_ratio.mean().expand(len(x))
        losses = []
        for t in range(len(x)):
            ratio = log_ratio[t].exp()
            surrogate = torch.minimum(ratio * A, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * A)
            if config.dual_clip and A < 0:
                surrogate = torch.clamp(surrogate, min=config.dual_clip * A)
            if config.importance_cap:
                surrogate = surrogate * min(math.exp(old[t] - of["old_logprob"][t]), config.importance_cap)
            u = of["reference"][t] - x[t]
            kl = {"k1": -u, "k2": u**2 / 2, "k3": u.exp() - u - 1}[config.kl_estimator]
            losses.append(-surrogate + config.kl_coef * kl - config.entropy_coef * of["entropy"][t])
        mean = {"token": counts.num_tokens, "constant": counts.num_completions * MOST}
        divisor = mean.get(config.normalization, counts.num_completions * len(x))
        total = total + torch.stack(losses).sum() / divisor
    gradients = torch.autograd.grad(total, leaves)
    return float(total.detach()), [gradient.numpy() for gradient in gradients]


def of_micro_batches(
    config: GrpoConfig, completions: list[dict[str, np.ndarray]], cuts: list[int], monkeypatch
) -> tuple[float, list[np.ndarray]]:
    """The same by `PolicyLoss`, the completions cut into micro-batches; with a cap in the second inner epoch."""
    monkeypatch.setattr(module, "token_logprobs", lambda reference, batch, _: (batch.values_T["reference"], None))
    counts = StepCounts.of([len(c["logprob"]) for c in completions])
    policy = PolicyLoss(config, torch.nn.Identity() if config.kl_coef else None)
    bounds = [0, *sorted(cuts), len(completions)]
    parts = [completions[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    for epoch, name in enumerate(("before", "logprob") if config.importance_cap else ("logprob",)):
        total, gradients, loss_of = 0.0, [], policy.for_epoch(epoch)
        for part in parts:
            leaves = []
            for arrays in part:
                length = len(arrays["logprob"])
                weight = np.full(length, token_weight(config.normalization, length, counts, MOST))
                leaves.append(Leaf([1], [0] * length, {**arrays, "weight": weight}))
            batch = MicroBatch.of([TokenTree.of(leaves)], torch.device("cpu"))
            x_T = batch.values_T[name].clone().requires_grad_()
            loss_T, _ = loss_of(batch, x_T, batch.values_T["entropy"])
            loss = (loss_T * batch.values_T["weight"]).sum()
            total += float(loss.detach())
            gradient_T = torch.autograd.grad(loss, x_T)[0]
            gradients += [gradient_T[batch.leaf_T == leaf].numpy() for leaf in range(batch.num_leaves)]
    return total, gradients


@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    lengths=st.lists(st.integers(1, MOST), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 6), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_loss_and_gradient_are_the_definitions_in_any_micro_batches(name, lengths, cuts, seed):
    config, completions = OBJECTIVES[name], problem(lengths, seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        cuts = [min(cut, len(lengths)) for cut in cuts]
        loss, gradients = of_micro_batches(config, completions, cuts, monkeypatch)
    right, right_gradients = by_definition(config, completions)
    assert loss == pytest.approx(right, rel=1e-12, abs=1e-12)
    for found, expected in zip(gradients, right_gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def batch_of(completions: list[dict[str, np.ndarray]]) -> MicroBatch:
    leaves = [Leaf([1], [0] * len(arrays["logprob"]), arrays) for arrays in completions]
    return MicroBatch.of([TokenTree.of(leaves)], torch.device("cpu"))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_where_rollout_and_trainer_agree_the_correction_is_exactly_nothing(ratio):
    config = GrpoConfig(kl_coef=0.0, ratio=ratio)
    batch = batch_of([{name: x.astype(np.float32) for name, x in c.items()} for c in problem([3, 5, 1], 0)])
    x_T, entropy_T = batch.values_T["old_logprob"], batch.values_T["entropy"]
    plain_T, _ = PolicyLoss(config, None)(batch, x_T, entropy_T)
    corrected_T, metrics = PolicyLoss(replace(config, importance_cap=2.0), None).for_epoch(0)(batch, x_T, entropy_T)
    assert torch.equal(corrected_T, plain_T)
    assert metrics["importance_weight"].tolist() == [1.0] * 9 and not metrics["importance_capped"].any()


def test_the_correction_is_the_ratio_of_trainer_to_rollout_up_to_its_cap():
    config = GrpoConfig(kl_coef=0.0, importance_cap=2.0)
    arrays = {"old_logprob": np.log([0.5, 0.5, 0.1]), "advantage": np.ones(3), "entropy": np.ones(3)}
    batch = batch_of([arrays | {"logprob": np.zeros(3)}])
    own_T = torch.tensor([0.5, 0.25, 0.9], dtype=torch.float64).log().requires_grad_()
    policy = PolicyLoss(config, None)
    loss_T, metrics = policy.for_epoch(0)(batch, own_T, batch.values_T["entropy"])
    assert metrics["importance_weight"].tolist() == pytest.approx([1.0, 0.5, 2.0])
    assert metrics["importance_capped"].tolist() == [False, False, True]
    assert loss_T.tolist() == pytest.approx([-1.0, -0.5, -2.0])  # the ratio to the trainer's own log-probs is 1
    assert metrics["logprob_gap"].tolist() == pytest.approx([0.0, math.log(2), math.log(9)])
    # The weight is a constant: the gradient is that of the ratio alone.
    assert torch.autograd.grad(loss_T.sum(), own_T)[0].tolist() == pytest.approx([-1.0, -0.5, -2.0])
    # A later inner epoch clips by what the trainer said in the first one, with the same weights.
    later_T, metrics = policy.for_epoch(1)(batch, own_T.detach() + math.log(1.1), batch.values_T["entropy"])
    assert metrics["importance_weight"].tolist() == pytest.approx([1.0, 0.5, 2.0])
    assert later_T.tolist() == pytest.approx([-1.1, -0.55, -2.2])
    # And the next step begins anew.
    _, metrics = policy.for_epoch(0)(batch, batch.values_T["old_logprob"], batch.values_T["entropy"])
    assert metrics["importance_weight"].tolist() == [1.0] * 3


def test_a_step_tells_of_every_inner_epoch_that_was_skipped():
    class Learner:
        def update(self, trees, loss, max_tokens, step, *_):
            return {"loss": float(step), "skipped": float(step in (9, 10))} | dict.fromkeys(AGREEMENT, float(step))

    config = GrpoConfig(inner_epochs=3)
    found = update_on([], Learner(), PolicyLoss(config, None), config, 3)
    assert found == {"loss": 11.0, "skipped": 2.0} | dict.fromkeys(AGREEMENT, 9.0)


def test_inner_epochs_that_see_other_micro_batches_are_noticed():
    policy = PolicyLoss(GrpoConfig(kl_coef=0.0, importance_cap=2.0), None)
    one, other = (batch_of(problem([length], 0)) for length in (3, 4))
    policy.for_epoch(0)(one, one.values_T["logprob"], one.values_T["entropy"])
    with pytest.raises(AssertionError, match="same micro-batches"):
        policy.for_epoch(1)(other, other.values_T["logprob"], other.values_T["entropy"])


def test_the_sequence_ratio_clips_whole_completions():
    config = GrpoConfig(kl_coef=0.0, ratio="sequence", clip_high=0.2)
    zeros = {"old_logprob": np.zeros(2), "advantage": np.ones(2), "entropy": np.ones(2)}
    batch = batch_of([zeros | {"logprob": np.array(x)} for x in ([1.0, -0.8], [1.0, -0.4])])
    loss_T, metrics = PolicyLoss(config, None)(batch, batch.values_T["logprob"], batch.values_T["entropy"])
    # Means 0.1 and 0.3: ratios 1.105 and 1.350, the second beyond 1.2.
    assert metrics["clip_share"].tolist() == [False, False, True, True]
    assert loss_T.tolist() == pytest.approx([-math.exp(0.1)] * 2 + [-1.2] * 2)
