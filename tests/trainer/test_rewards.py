"""Parts of rewards, pairwise rewards, shaping, and what advantages make of them."""

import math

import pytest

from eval.pair_accuracy import read_strictly
from eval.pair_choices import read_choices
from patarm_core.advantages import group_relative
from patarm_core.pairs import Pair
from rollout.params import Completion
from tests import tiny_runs
from tests.strategies import judgment_text
from trainer.config import GrpoConfig
from trainer.rewards import rewarded, step_advantages, teaches
from trainer.rollout_report import rollout_metrics, sample_records

PAIR = Pair("Which?", "good", "bad", "chat", "here", "1")
RECIPE = {"out": "unused", "rollout.num_rollouts": 4, "rollout.max_completion_tokens": 10, "prompt.rubrics": "adaptive"}


def completions(texts, num_tokens=5):
    return [Completion([0] * num_tokens, text, None, None, None, "stop") for text in texts]


def chosen_between(texts, is_swapped=False, num_tokens=5, **settings):
    drawn = completions(texts, num_tokens)
    judged = read_choices(PAIR, drawn, is_swapped, "adaptive", is_lenient=False)
    recipe = tiny_runs.recipe_of(RECIPE | {"mode": "pairwise"} | settings)
    return rewarded(0, judged, ([1, 2],), [drawn], recipe)


A, B, WRONG, NO_TAGS = judgment_text("A"), judgment_text("B"), judgment_text("C"), "no tags"


def test_the_right_choice_earns_one_whichever_letter_it_has():
    assert chosen_between([A, B, WRONG, NO_TAGS]).rewards == [1.0, 0.0, -1.0, -1.5]
    assert chosen_between([A, B, WRONG, NO_TAGS], is_swapped=True).rewards == [0.0, 1.0, -1.0, -1.5]
    assert chosen_between([A, B, WRONG, NO_TAGS]).parts == {
        "choice": [1.0, 0.0, 0.0, 0.0], "format": [0.0, 0.0, -1.0, -1.5],
    }  # fmt: skip


@pytest.mark.parametrize("group", ["side", "pair"])
def test_the_judgments_of_a_pair_are_one_group_when_they_choose(group):
    parts = chosen_between([A, B, B, B]).parts
    advantage, metrics = step_advantages(parts, 1, GrpoConfig(group=group))
    assert advantage == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)
    assert (metrics["zero_advantage_groups"], metrics["variance_share_choice"]) == (0, pytest.approx(1))


def test_overlong_shaping_is_a_part_of_the_reward_and_off_by_default():
    settings = {"grpo.overlong_buffer_tokens": 4}
    assert "length" not in chosen_between([A] * 4).parts
    for num_tokens, punishment in ((6, 0.0), (7, -0.25), (10, -1.0)):
        rollout = chosen_between([A, B, A, A], num_tokens=num_tokens, **settings)
        assert rollout.parts["length"] == [punishment] * 4
        assert rollout.rewards == [1 + punishment, punishment, 1 + punishment, 1 + punishment]


def pointwise(chosen, rejected, **settings):
    sides = [completions(chosen), completions(rejected)]
    return rewarded(
        0, read_strictly(PAIR, sides, "adaptive"), ([1], [2]), sides, tiny_runs.recipe_of(RECIPE | settings)
    )


def test_parts_add_up_to_the_reward_and_are_exact():
    rollout = pointwise([judgment_text("9"), NO_TAGS], [judgment_text("5"), judgment_text("11")])
    assert rollout.parts == {"par": [1.4, 0.0, 1.4, 0.0], "format": [0.0, -1.5, 0.0, -1.0]}
    assert rollout.rewards == [1.4, -1.5, 1.4, -1.0]


def test_separate_normalisation_adds_the_advantages_of_the_parts():
    parts = {"par": [1.4, 0.0, 0.0, 1.2], "format": [0.0, -1.5, 0.0, 0.0]}
    config = GrpoConfig(group="pair", normalize_rewards="separately")
    apart = [group_relative(part, [0] * 4) for part in parts.values()]
    assert step_advantages(parts, 1, config)[0] == pytest.approx([a + b for a, b in zip(*apart)])
    together = group_relative([1.4, -1.5, 0.0, 1.2], [0] * 4)
    assert step_advantages(parts, 1, GrpoConfig(group="pair"))[0] == pytest.approx(together)


def test_shares_of_variance_say_where_the_advantage_comes_from():
    parts = {"par": [1.2, 0.0, 0.0, 0.0], "format": [0.0, 0.0, -1.5, 0.0]}
    # Sides are groups: (1.2, 0) varies by PAR alone, 0.72; (-1.5, 0) by format alone, 1.125.
    _, metrics = step_advantages(parts, 1, GrpoConfig())
    assert metrics["variance_share_par"] == pytest.approx(0.72 / 1.845)
    assert metrics["variance_share_format"] == pytest.approx(1.125 / 1.845)
    _, metrics = step_advantages({"par": [1.2] * 8, "format": [0.0] * 8}, 1, GrpoConfig())
    assert metrics == {"zero_advantage_groups": 2, "zero_advantage_share": 1.0}


def test_a_pair_teaches_if_any_of_its_groups_varies_exactly():
    same = [judgment_text("8.3")] * 4
    assert not teaches(pointwise(same, same), GrpoConfig())  # a float mean of 8 times 1.2 is not 1.2
    assert not teaches(pointwise([judgment_text("9")] * 4, same), GrpoConfig())
    assert teaches(pointwise([judgment_text("9")] * 4, same), GrpoConfig(group="pair")) is False  # all earn 1.2
    assert teaches(pointwise([judgment_text("9")] * 4, [*same[:3], judgment_text("9.5")]), GrpoConfig())
    assert not teaches(chosen_between([B] * 4), GrpoConfig())
    assert teaches(chosen_between([A, A, A, B]), GrpoConfig(advantage="reinforce++_baseline"))


def test_metrics_and_samples_of_choices():
    rollouts = [chosen_between([A, A, B, NO_TAGS], is_swapped=True), chosen_between([A, A, B, A])]
    metrics = rollout_metrics([(rollout.judged, rollout.parts) for rollout in rollouts])
    assert (metrics["reward_choice"], metrics["reward_format"]) == pytest.approx((4 / 8, -1.5 / 8))
    assert metrics["reward"] == pytest.approx(4 / 8 - 1.5 / 8)
    assert (metrics["pair_accuracy"], metrics["valid_rate"]) == (0.5, 7 / 8)
    assert "margin" not in metrics and all(math.isfinite(value) for value in metrics.values())
    first, second = sample_records(rollouts, "grpo", 7, 2)
    assert first == {
        "stage": "grpo", "step": 7, "source": "here", "id": "1", "is_swapped": True, "judgment": A,
        "choice": "rejected", "error": None, "reward": 0.0, "prompt": "Which?", "response": "A: bad\n\nB: good",
    }  # fmt: skip
    assert (second["choice"], second["reward"]) == ("chosen", 1.0)
