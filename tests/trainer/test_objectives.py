"""The clipped surrogate against its formula, written for one token in Python floats."""

import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from trainer.objectives import grpo_loss

logprobs = st.floats(-12, 0)
# Where both branches are equal, each gets half of the gradient, and half of the least floats is inexact.
advantages = st.floats(1e-300, 3) | st.floats(-3, -1e-300) | st.just(0.0)
clips = st.floats(0.01, 0.9)
coefficients = st.just(0.0) | st.floats(1e-4, 1)


def by_definition(logprob, old, advantage, low, high, reference=None, kl_coef=0.0, entropy=None, entropy_coef=0.0):
    """(loss, is clipped, k3) of one token."""
    ratio = math.exp(logprob - old)
    clipped_ratio = max(1 - low, min(1 + high, ratio))
    surrogate = min(ratio * advantage, clipped_ratio * advantage)
    k3 = 0.0 if reference is None else math.exp(reference - logprob) - (reference - logprob) - 1
    bonus = 0.0 if entropy is None else entropy_coef * entropy
    return -surrogate + kl_coef * k3 - bonus, clipped_ratio * advantage < ratio * advantage, k3


def gradient_by_definition(logprob, old, advantage, low, high, reference, kl_coef):
    """d loss / d logprob: -A ratio while the unclipped branch counts, and kl_coef (1 - exp(ref - logprob))."""
    ratio = math.exp(logprob - old)
    is_clipped = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    policy = 0.0 if is_clipped else -advantage * ratio
    return policy + kl_coef * (1 - math.exp(reference - logprob))


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(logprobs, logprobs, advantages, clips, clips, logprobs, coefficients, st.floats(0, 5), coefficients)
@example(-1.0, -1.0, 1.0, 0.2, 0.2, -1.0, 0.001, 1.0, 0.0)
@example(math.log(1.5), 0.0, 1.0, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0)  # clipped above
@example(math.log(1.5), 0.0, -1.0, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0)  # too likely and bad: never clipped
@example(math.log(0.5), 0.0, -1.0, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0)  # clipped below
@example(math.log(0.5), 0.0, 1.0, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0)  # too unlikely and good: never clipped
def test_matches_the_definition(logprob, old, advantage, low, high, reference, kl_coef, entropy, entropy_coef):
    found = grpo_loss(
        tensor(logprob), tensor(old), tensor(advantage), low, high,
        tensor(reference), kl_coef, tensor(entropy), entropy_coef,
    )  # fmt: skip
    loss, is_clipped, k3 = by_definition(logprob, old, advantage, low, high, reference, kl_coef, entropy, entropy_coef)
    assert found.loss_T.item() == pytest.approx(loss, rel=1e-9, abs=1e-9)
    assert found.kl_T.item() == pytest.approx(k3, rel=1e-9, abs=1e-9)
    on_the_edge = min(abs(math.exp(logprob - old) - edge) for edge in (1 - low, 1 + high)) < 1e-9
    assert on_the_edge or found.is_clipped_T.item() == is_clipped


@given(logprobs, logprobs, advantages, clips, clips, logprobs, coefficients)
def test_the_gradient_is_that_of_the_branch_that_counts(logprob, old, advantage, low, high, reference, kl_coef):
    assume(min(abs(math.exp(logprob - old) - edge) for edge in (1 - low, 1 + high)) > 1e-6)
    x_T = tensor(logprob).requires_grad_()
    grpo_loss(x_T, tensor(old), tensor(advantage), low, high, tensor(reference), kl_coef).loss_T.sum().backward()
    expected = gradient_by_definition(logprob, old, advantage, low, high, reference, kl_coef)
    assert x_T.grad.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.floats(-3, 0), st.floats(-3, 0), advantages, clips, clips, st.floats(-3, 0), coefficients)
def test_the_gradient_is_that_of_finite_differences(logprob, old, advantage, low, high, reference, kl_coef):
    step = 1e-5
    assume(min(abs(math.exp(logprob - old) - edge) for edge in (1 - low, 1 + high)) > 1e-3)
    x_T = tensor(logprob).requires_grad_()
    grpo_loss(x_T, tensor(old), tensor(advantage), low, high, tensor(reference), kl_coef).loss_T.sum().backward()
    above, below = (
        by_definition(logprob + sign * step, old, advantage, low, high, reference, kl_coef)[0] for sign in (1, -1)
    )
    assert x_T.grad.item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)


@given(st.lists(st.tuples(logprobs, logprobs, advantages), min_size=1, max_size=8), clips, clips)
def test_a_clipped_token_has_no_gradient_and_all_others_with_an_advantage_have_one(tokens, low, high):
    logprob_T, old_T, advantage_T = (tensor(*column) for column in zip(*tokens, strict=True))
    logprob_T.requires_grad_()
    result = grpo_loss(logprob_T, old_T, advantage_T, low, high)
    result.loss_T.sum().backward()
    for is_clipped, gradient, (logprob, old, advantage) in zip(
        result.is_clipped_T.tolist(), logprob_T.grad.tolist(), tokens, strict=True
    ):
        if is_clipped:
            assert gradient == 0
        elif min(abs(math.exp(logprob - old) - edge) for edge in (1 - low, 1 + high)) > 1e-9:
            assert gradient == pytest.approx(-advantage * math.exp(logprob - old), rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(logprobs, advantages), min_size=1, max_size=8), clips)
def test_where_the_policy_has_not_moved_the_gradient_is_minus_the_advantage(tokens, clip):
    logprob_T, advantage_T = (tensor(*column) for column in zip(*tokens, strict=True))
    old_T = logprob_T.clone()
    logprob_T.requires_grad_()
    result = grpo_loss(logprob_T, old_T, advantage_T, clip, clip)
    result.loss_T.sum().backward()
    assert logprob_T.grad.tolist() == (-advantage_T).tolist()
    assert result.loss_T.tolist() == (-advantage_T).tolist()
    assert not result.is_clipped_T.any()


@given(logprobs, logprobs)
def test_k3_is_never_negative_and_zero_where_the_policies_agree(logprob, reference):
    k3 = grpo_loss(tensor(logprob), tensor(logprob), tensor(0.0), 0.2, 0.2, tensor(reference), 1.0).kl_T.item()
    assert k3 >= -1e-15
    assert (k3 > 0) == (abs(logprob - reference) > 1e-7) or abs(logprob - reference) < 1e-6
    assert grpo_loss(tensor(logprob), tensor(logprob), tensor(0.0), 0.2, 0.2, tensor(logprob), 1.0).kl_T.item() == 0


@given(logprobs, logprobs, advantages)
def test_without_a_reference_the_penalty_is_zero_whatever_its_coefficient(logprob, old, advantage):
    plain = grpo_loss(tensor(logprob), tensor(old), tensor(advantage), 0.2, 0.2)
    priced = grpo_loss(tensor(logprob), tensor(old), tensor(advantage), 0.2, 0.2, None, 0.5)
    assert plain.loss_T.item() == priced.loss_T.item()
    assert priced.kl_T.item() == 0


def test_an_entropy_bonus_is_followed_by_its_gradient():
    entropy_T = tensor(1.0, 2.0).requires_grad_()
    result = grpo_loss(tensor(-1, -1), tensor(-1, -1), tensor(0, 0), 0.2, 0.2, entropy_T=entropy_T, entropy_coef=0.25)
    result.loss_T.sum().backward()
    assert result.loss_T.tolist() == [-0.25, -0.5]
    assert entropy_T.grad.tolist() == [-0.25, -0.25]
