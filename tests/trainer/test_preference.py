"""Losses of preference pairs against their definitions in plain float64."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.preference import bradley_terry_loss, dpo_loss

rewards = st.floats(-30, 30)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def value(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64, requires_grad=True)


@given(rewards, rewards)
@example(2.0, 2.0)  # a tie costs log 2
def test_bradley_terry_is_minus_the_log_of_the_chance_that_chosen_wins(chosen, rejected):
    c_P, r_P = value(chosen), value(rejected)
    loss_P = bradley_terry_loss(c_P, r_P)
    loss_P.sum().backward()
    wins = math.exp(chosen) / (math.exp(chosen) + math.exp(rejected))
    assert loss_P.item() == pytest.approx(-math.log(wins), rel=1e-9, abs=1e-12)
    assert c_P.grad.item() == pytest.approx(wins - 1, abs=1e-12)
    assert r_P.grad.item() == pytest.approx(1 - wins, abs=1e-12)


@given(rewards, rewards, st.floats(0, 0.49))
@example(1.0, -1.0, 0.0)  # eq. 7 as it stands
def test_dpo_is_bradley_terry_with_a_share_of_labels_held_to_be_wrong(chosen, rejected, smoothing):
    c_P, r_P = value(chosen), value(rejected)
    loss_P = dpo_loss(c_P, r_P, smoothing)
    loss_P.sum().backward()
    right, wrong = sigmoid(chosen - rejected), sigmoid(rejected - chosen)
    expected = -(1 - smoothing) * math.log(right) - smoothing * math.log(wrong)
    assert loss_P.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert c_P.grad.item() == pytest.approx(right - (1 - smoothing), abs=1e-12)


@given(rewards, rewards, rewards)
def test_only_the_difference_of_rewards_matters(chosen, rejected, shift):
    for loss in (bradley_terry_loss, dpo_loss):
        moved, plain = loss(value(chosen + shift), value(rejected + shift)), loss(value(chosen), value(rejected))
        assert moved.item() == pytest.approx(plain.item(), rel=1e-9, abs=1e-12)


@given(rewards, rewards)
def test_without_label_noise_a_larger_margin_costs_less(chosen, rejected):
    assert dpo_loss(value(chosen + 1), value(rejected)).item() < dpo_loss(value(chosen), value(rejected)).item()


def test_with_smoothing_the_loss_is_least_where_the_margin_says_so():
    """Its minimum is at σ(margin) = 1 - ε: no pair is ever worth an endless margin."""
    best = math.log(0.9 / 0.1)
    c_P = value(best)
    dpo_loss(c_P, value(0.0), 0.1).sum().backward()
    assert abs(c_P.grad.item()) < 1e-12
