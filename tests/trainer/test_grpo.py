"""Rollouts, rewards and advantages of a step, against numbers worked out by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from patarm_core.judgment import parse
from patarm_core.pairs import Pair, read_pairs
from patarm_core.par import constant, total_rewards
from patarm_core.sampling import flip_sides
from rollout.contexts import PromptConfig
from rollout.params import Completion
from rollout.questions import STOP
from tests import tiny_runs
from trainer import grpo, policy_loss
from trainer.config import GrpoConfig, MarginConfig, Recipe
from trainer.distributed import World
from trainer.main import main
from trainer.policy_loss import PolicyLoss
from trainer.rewards import PairRollout, step_advantages
from trainer.rollout_report import rollout_metrics, sample_records
from trainer.run_folder import Stopwatch
from trainer.shared_rollout import SharedRollout
from trainer.token_tree import Leaf, MicroBatch, TokenTree


def pair(id: str, chosen: str = "good", rejected: str = "bad") -> Pair:
    return Pair(prompt="Which?", chosen=chosen, rejected=rejected, task="chat", source="here", id=id)


def judged(score: str) -> str:
    return f"<think>so</think><generate_rubrics>x</generate_rubrics><eval>it is</eval><answer>{score}</answer>"


class Contexts:
    """A context per side, told apart by its tokens."""

    config = PromptConfig()

    def sides(self, pair: Pair) -> tuple[list[int], list[int]]:
        return [1, int(pair.id)], [2, int(pair.id), 0]


class Script:
    """An engine that gives each context what the script says, and remembers what it was asked."""

    def __init__(self, texts: dict[tuple[int, ...], list[str]]) -> None:
        self.texts, self.asked = texts, []

    def stream(self, pairs):
        self.asked = list(pairs)
        for number, (context, _) in enumerate(self.asked):
            yield (
                number,
                [
                    Completion(list(range(len(text))), text, *np.full((3, len(text)), -0.5, np.float32), "stop")
                    for text in self.texts[tuple(context)]
                ],
            )


def roll_out(engine: Script, pairs: list[Pair], recipe: Recipe, step: int) -> list[PairRollout]:
    alone = World(0, 1, torch.device("cpu"), None)
    shared = SharedRollout(Contexts(), alone)
    return grpo.roll_out(engine, shared, pairs, recipe, step, Stopwatch(alone.device))[0]


TEXTS = {
    (1, 0): [judged("9"), judged("8"), judged("3"), "no tags"],
    (2, 0, 0): [judged("5"), judged("11"), judged("7"), judged("4")],
    (1, 1): [judged("6")] * 4,
    (2, 1, 0): [judged("6")] * 4,
}
RECIPE = {"out": "unused", "rollout.num_rollouts": 4, "grpo.pairs_per_step": 2}


@pytest.fixture
def rollouts():
    return roll_out(Script(TEXTS), [pair("0"), pair("1")], tiny_runs.recipe_of(RECIPE), step=3)


def test_rewards_are_par_and_format_of_what_was_written(rollouts):
    # s̄^c = 20/3 of 9, 8, 3; s̄^r = 16/3 of 5, 7, 4. Margins 3.67, 2.67, -2.33; 1.67, -0.33, 2.67.
    assert rollouts[0].rewards == [1.4, 1.4, 0.0, -1.5, 1.2, -1.0, 0.0, 1.4]
    assert rollouts[1].rewards == [0.0] * 8


def test_rewards_are_total_rewards_of_the_parsed_texts(rollouts):
    for rollout in rollouts:
        sides = [
            [parse(text) for text in texts] for texts in (rollout.judged.chosen_texts, rollout.judged.rejected_texts)
        ]
        assert [rollout.judged.chosen, rollout.judged.rejected] == sides
        chosen, rejected = total_rewards(*sides)
        assert rollout.rewards == chosen + rejected
    assert [c.text for c in rollouts[0].completions] == TEXTS[1, 0] + TEXTS[2, 0, 0]


def test_the_margin_reward_is_the_recipes():
    recipe = tiny_runs.recipe_of(RECIPE | {"grpo.margin.kind": "constant", "grpo.margin.value": 0.5})
    rollout = roll_out(Script(TEXTS), [pair("0")], recipe, step=0)[0]
    assert rollout.rewards == [0.5, 0.5, 0.0, -1.5, 0.5, -1.0, 0.0, 0.5]
    assert MarginConfig(kind="constant", value=0.5).build() == constant(0.5)


def test_the_engine_is_asked_for_n_judgments_that_end_with_their_answer():
    engine = Script(TEXTS)
    recipe = tiny_runs.recipe_of(RECIPE | {"rollout.max_completion_tokens": 33})
    roll_out(engine, [pair("1"), pair("0")], recipe, step=0)
    assert [context for context, _ in engine.asked] == [[1, 1], [2, 1, 0], [1, 0], [2, 0, 0]]
    assert {(p.n, p.max_tokens, p.temperature, p.top_k, p.top_p, p.min_p, p.stop) for _, p in engine.asked} == {
        (4, 33, 1.0, 0, 1.0, 0.0, STOP)
    }


def seeds(pairs: list[Pair], step: int, **settings: object) -> dict[tuple[str, str, int], int]:
    engine = Script({context: ["x"] for p in pairs for context in map(tuple, Contexts().sides(p))})
    roll_out(engine, pairs, tiny_runs.recipe_of(RECIPE | settings), step)
    names = [(p.source, p.id, side) for p in pairs for side in (0, 1)]
    return dict(zip(names, (params.seed for _, params in engine.asked), strict=True))


def test_noise_is_named_by_run_seed_step_pair_and_side_alone():
    pairs = [pair(str(number)) for number in range(6)]
    together = seeds(pairs, step=5)
    assert seeds(pairs[::-1], step=5) == together
    assert seeds(pairs[2:3], step=5) == {name: seed for name, seed in together.items() if name[1] == "2"}
    assert seeds([pair("2", "other", "texts")], step=5) == seeds(pairs[2:3], step=5)
    assert seeds(pairs, step=5, **{"rollout.num_rollouts": 8, "grpo.pairs_per_step": 6}) == together


def test_no_two_draws_of_a_run_share_their_noise():
    pairs = [pair(str(number)) for number in range(12)]
    drawn = [seed for step in range(12) for run in (0, 1) for seed in seeds(pairs, step, seed=run).values()]
    assert len(set(drawn)) == len(drawn) == 12 * 12 * 2 * 2


def test_the_last_token_of_the_stop_string_ends_a_judgment():
    assert parse(judged("7")[: judged("7").index(STOP[0]) + len(STOP[0])]).score == 7


# Two pairs of n = 2: rewards chosen, chosen, rejected, rejected.
REWARDS = [1.2, 0.0, 0.0, 0.0, 1.4, -1.5, 1.2, 0.0]


def advantages_of(rewards: list[float], num_pairs: int, config: GrpoConfig) -> tuple[list[float], dict[str, float]]:
    """Of rewards that are PAR's alone, and how many groups are lost."""
    found, metrics = step_advantages({"par": rewards, "format": [0.0] * len(rewards)}, num_pairs, config)
    return found, {name: value for name, value in metrics.items() if name.startswith("zero_")}


def by_hand(rewards: list[float], size: int) -> list[float]:
    """(R - mean) / (sample deviation + 1e-6) of consecutive groups; 0 in a group of equals."""
    advantages = []
    for start in range(0, len(rewards), size):
        group = rewards[start : start + size]
        mean = sum(group) / size
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / (size - 1))
        advantages += [0.0 if max(group) == min(group) else (r - mean) / (deviation + 1e-6) for r in group]
    return advantages


def test_advantages_per_side_compare_the_judgments_of_one_response():
    found, lost = advantages_of(REWARDS, 2, GrpoConfig(group="side"))
    root = math.sqrt(0.5)
    assert found == pytest.approx([root, -root, 0, 0, root, -root, root, -root], abs=1e-5)
    assert found == pytest.approx(by_hand(REWARDS, 2), rel=1e-12)
    assert lost == {"zero_advantage_groups": 1, "zero_advantage_share": 1 / 4}


def test_advantages_per_pair_compare_the_judgments_of_both_responses():
    found, lost = advantages_of(REWARDS, 2, GrpoConfig(group="pair"))
    assert found[:4] == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert found == pytest.approx(by_hand(REWARDS, 4), rel=1e-12)
    assert lost == {"zero_advantage_groups": 0, "zero_advantage_share": 0.0}


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ("dr_grpo", [0.6, -0.6, 0, 0, 1.45, -1.45, 0.6, -0.6]),
        ("rloo", [1.2, -1.2, 0, 0, 2.9, -2.9, 1.2, -1.2]),
        ("reinforce++", [(r - 0.2875) / math.sqrt((7.09 - 8 * 0.2875**2) / 7) for r in REWARDS]),
        ("reinforce++_baseline", [x / math.sqrt((4 * 0.36 + 2 * 1.45**2) / 7) for x in
                         [0.6, -0.6, 0, 0, 1.45, -1.45, 0.6, -0.6]]),
    ],
)  # fmt: skip
def test_the_other_estimators_by_hand(advantage, expected):
    found, _ = advantages_of(REWARDS, 2, GrpoConfig(advantage=advantage))
    assert found == pytest.approx(expected, rel=1e-5)


def test_plain_reinforce_knows_no_groups():
    """A group of equals is above or below the step's mean, so it is not lost; only a step of equals is."""
    found, lost = advantages_of(REWARDS, 2, GrpoConfig(advantage="reinforce++"))
    assert found[2] == found[3] < 0 and lost["zero_advantage_groups"] == 0
    of_pairs, _ = advantages_of(REWARDS, 2, GrpoConfig(advantage="reinforce++", group="pair"))
    assert of_pairs == found
    assert advantages_of([1.2] * 8, 2, GrpoConfig(advantage="reinforce++"))[1]["zero_advantage_groups"] == 4


def test_groups_without_variance_are_counted_and_get_exactly_zero():
    found, lost = advantages_of([1.2] * 4 + [0.0] * 2 + [1.2, 0.0], 2, GrpoConfig())
    assert lost == {"zero_advantage_groups": 3, "zero_advantage_share": 3 / 4}
    assert found[:6] == [0.0] * 6
    found, lost = advantages_of([-1.5] * 8, 2, GrpoConfig(group="pair"))
    assert (found, lost) == ([0.0] * 8, {"zero_advantage_groups": 2, "zero_advantage_share": 1.0})


def test_each_judgment_carries_its_own_advantage_on_all_of_its_tokens(rollouts):
    advantage = [float(number) for number in range(16)]
    trees = [
        tree for rollout in rollouts for tree in grpo.to_trees([rollout], advantage, lambda length: 1 / length)
    ]  # whichever a rank has
    assert [leaf.context for tree in trees for leaf in tree] == [
        context for context in ([1, 0], [2, 0, 0], [1, 1], [2, 1, 0]) for _ in range(4)
    ]
    assert [leaf.name for tree in trees for leaf in tree] == ["pair 0 of here"] * 8 + ["pair 1 of here"] * 8
    leaves = [leaf for tree in trees for leaf in tree]
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    for leaf, expected, completion in zip(leaves, advantage, completions, strict=True):
        assert leaf.completion == completion.token_ids
        assert leaf.values["advantage"].tolist() == [expected] * len(leaf.completion)
        assert leaf.values["old_logprob"] is completion.logprobs
        assert leaf.values["weight"].tolist() == pytest.approx([1 / len(leaf.completion)] * len(leaf.completion))


def test_metrics_split_the_reward_and_count_what_went_wrong(rollouts):
    metrics = rollout_metrics([(rollout.judged, rollout.parts) for rollout in rollouts])
    assert metrics["reward"] == pytest.approx((1.4 + 1.4 - 1.5 + 1.2 - 1.0 + 1.4) / 16)
    assert metrics["reward_format"] == pytest.approx(-2.5 / 16)
    assert metrics["reward_par"] == pytest.approx(5.4 / 16)
    assert metrics["reward"] == pytest.approx(metrics["reward_par"] + metrics["reward_format"])
    assert (metrics["tag_error_rate"], metrics["score_error_rate"], metrics["valid_rate"]) == (1 / 16, 1 / 16, 14 / 16)
    # Pair 0: 20/3 against 16/3. Pair 1: 6 against 6.
    assert (metrics["pair_accuracy"], metrics["pair_ties"], metrics["pair_unscored"]) == (0.5, 0.5, 0.0)
    assert metrics["margin"] == pytest.approx(float(Fraction(4, 3) / 2))
    scores = [9, 8, 3, 5, 7, 4] + [6] * 8
    assert metrics["score_mean"] == pytest.approx(np.mean(scores))
    assert metrics["score_std"] == pytest.approx(np.std(scores))


def test_metrics_of_a_step_without_one_valid_judgment_are_numbers():
    script = Script({(1, 0): ["no"] * 2, (2, 0, 0): ["no"] * 2})
    recipe = tiny_runs.recipe_of(RECIPE | {"rollout.num_rollouts": 2})
    (rollout,) = roll_out(script, [pair("0")], recipe, 0)
    metrics = rollout_metrics([(rollout.judged, rollout.parts)])
    assert (metrics["reward"], metrics["reward_par"], metrics["pair_unscored"]) == (-1.5, 0.0, 1.0)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics.keys().isdisjoint({"margin", "score_mean", "score_std"})  # there is none, and 0 would be one


def test_samples_show_the_first_judgment_of_each_side(rollouts):
    assert sample_records(rollouts, "grpo", 7, 1) == [
        {
            "stage": "grpo", "step": 7, "source": "here", "id": "0", "side": "chosen", "judgment": judged("9"),
            "score": 9.0, "error": None, "reward": 1.4, "prompt": "Which?", "response": "good",
        },
        {
            "stage": "grpo", "step": 7, "source": "here", "id": "0", "side": "rejected", "judgment": judged("5"),
            "score": 5.0, "error": None, "reward": 1.2, "prompt": "Which?", "response": "bad",
        },
    ]  # fmt: skip
    assert len(sample_records(rollouts, "grpo", 7, 5)) == 4
    assert sample_records(rollouts, "grpo", 7, 0) == []


def test_a_sample_that_cannot_be_read_says_why():
    script = Script({(1, 0): ["no tags", "x"], (2, 0, 0): [judged("11"), "x"]})
    rollouts = roll_out(script, [pair("0")], tiny_runs.recipe_of(RECIPE | {"rollout.num_rollouts": 2}), 0)
    records = sample_records(rollouts, "grpo", 1, 1)
    assert [(r["score"], r["error"], r["reward"]) for r in records] == [(None, "tags", -1.5), (None, "score", -1.0)]


def with_values(values: dict[str, torch.Tensor]) -> MicroBatch:
    arrays = {name: value.numpy() for name, value in values.items()}
    num = len(next(iter(arrays.values())))
    return MicroBatch.of([TokenTree.of([Leaf([0], [0] * num, arrays)])], torch.device("cpu"))


def test_the_loss_reports_how_far_rollout_and_trainer_disagree():
    values = {"old_logprob": torch.tensor([-1.0, -2.0, -3.0]), "advantage": torch.tensor([1.0, 1.0, -1.0])}
    batch = with_values(values)
    loss_T, metrics = PolicyLoss(GrpoConfig(kl_coef=0.0), None)(
        batch, torch.tensor([-1.0, -1.5, -3.5]), torch.tensor([0.1, 0.2, 0.3])
    )
    assert metrics["logprob_gap"].tolist() == [0.0, 0.5, 0.5]
    kl = [0.0, math.exp(0.5) - 1 - 0.5, math.exp(-0.5) - 1 + 0.5]
    assert metrics["rollout_kl"].tolist() == pytest.approx(kl, rel=1e-5)
    assert metrics["clip_share"].tolist() == [False, True, True]  # ratios 1, 1.65 up, 0.61 down
    assert loss_T.tolist() == pytest.approx([-1.0, -1.2, 0.8])
    assert "kl" not in metrics


def test_the_loss_is_the_recipes(monkeypatch):
    monkeypatch.setattr(policy_loss, "token_logprobs", lambda reference, batch, is_exact: (reference, None))
    values = {"old_logprob": torch.tensor([-1.0, -2.0, -3.0]), "advantage": torch.tensor([-1.0, -1.0, -1.0])}
    batch = with_values(values)
    config = GrpoConfig(clip_low=0.1, dual_clip=2.0, kl_coef=0.5, kl_estimator="k2", entropy_coef=0.25)
    loss_T, metrics = PolicyLoss(config, torch.tensor([0.0, -2.5, -3.0]))(
        batch, torch.tensor([0.0, -2.0, -4.0]), torch.tensor([1.0, 2.0, 0.0])
    )
    assert metrics["clip_share"].tolist() == [True, False, True]  # ratios e: above 2, 1, 1/e: below 0.9
    assert metrics["kl"].tolist() == [0.0, 0.125, 0.5]
    assert loss_T.tolist() == pytest.approx([2 - 0.25, 1 + 0.0625 - 0.5, 0.9 + 0.25])


def pairs_trained_on(tiny_files, tiny_judge, out, monkeypatch, **settings) -> list[list[Pair]]:
    """The pairs of each step of a run."""
    seen, roll_out = [], grpo.roll_out

    def look(engine, shared, pairs, *rest):
        seen.append(list(pairs))
        return roll_out(engine, shared, pairs, *rest)

    monkeypatch.setattr(grpo, "roll_out", look)
    job = tiny_runs.settings(tiny_files) | {"out": out, "stages": ["grpo"], "model.path": tiny_judge}
    job |= {"data.held_out": "", "rollout.max_completion_tokens": 8, "grpo.kl_coef": 0}
    assert main(tiny_runs.arguments(job | settings)) == 0
    return seen


def test_label_noise_flips_the_sides_that_the_seed_says(tiny_files, tiny_judge, tmp_path, monkeypatch):
    file = tiny_files["data.pairs"]
    pairs = read_pairs(file.read_text().splitlines(), str(file), ["chat"])
    noisy, flipped = flip_sides(pairs, 0.5, 9)
    assert sum(flipped) == 4 and noisy != pairs
    seen = pairs_trained_on(tiny_files, tiny_judge, tmp_path / "a", monkeypatch, seed=9, **{"data.label_noise": 0.5})
    assert [len(step) for step in seen] == [3, 3, 1]  # an epoch of 7
    assert sorted((p for step in seen for p in step), key=lambda p: p.id) == sorted(noisy, key=lambda p: p.id)


def test_pairs_are_shuffled_by_the_seed_and_all_of_them_seen_each_epoch(tiny_files, tiny_judge, tmp_path, monkeypatch):
    orders = []
    for seed in (1, 2):
        with monkeypatch.context() as patch:
            seen = pairs_trained_on(
                tiny_files, tiny_judge, tmp_path / str(seed), patch, seed=seed, **{"grpo.epochs": 2}
            )
        ids = [p.id for step in seen for p in step]
        assert sorted(ids[:7]) == sorted(ids[7:]) == [str(number) for number in range(7)]
        orders += [ids[:7], ids[7:]]
    assert len({tuple(order) for order in orders}) == 4
