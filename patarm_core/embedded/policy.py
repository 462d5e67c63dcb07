"""The embedded set for a policy: responses to imitate, prompts to train on with their pairs, prompts to measure on.

The responses are imperfect: each item is right with a probability, whatever the item, so that a policy which imitates
them knows the right answers and does not always give them. What a program counts as right is the true reward. As for
the judge (splits.py), no question is in two places, and the last splits are drawn first.
"""

from dataclasses import dataclass
from random import Random

from patarm_core.embedded.splits import SOURCE, EmbeddedConfig, Question, draw_pair
from patarm_core.embedded.tasks import LETTERS, MAX_POLISH, check, draw_response, items_of, question_of
from patarm_core.pairs import Pair
from patarm_core.policy_rows import PolicyPrompt, ResponseExample


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedPolicyConfig:
    seed: int = 0
    num_responses: int = 4000  # to imitate; a prompt each
    num_prompts: int = 1000  # of rlhf; each has a pair, for dpo and for a scalar reward model
    num_dev: int = 200
    num_held_out: int = 400
    item_counts: tuple[int, ...] = (3,)  # items per prompt, drawn evenly
    right_share: float = 0.6  # probability that an item of a response to imitate is answered rightly
    close_share: float = 0.5  # share of pairs that differ by one item; the others differ by more

    def __post_init__(self):
        for name in ("num_responses", "num_prompts", "num_dev", "num_held_out"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is negative: {getattr(self, name)}")
        for name in ("right_share", "close_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        if not self.item_counts or not all(2 <= count <= len(LETTERS) for count in self.item_counts):
            raise ValueError(f"item_counts holds numbers from 2 to {len(LETTERS)}, got {self.item_counts}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySplits:
    responses: list[ResponseExample]
    pairs: list[Pair]
    prompts: list[PolicyPrompt]  # of the pairs
    dev: list[PolicyPrompt]
    dev_pairs: list[Pair]  # of these prompts
    held_out: list[PolicyPrompt]


def make_policy_splits(config: EmbeddedPolicyConfig) -> PolicySplits:
    seen: set[Question] = set()
    of_pairs = EmbeddedConfig(item_counts=config.item_counts, close_share=config.close_share)

    def draw(split: str, count: int) -> list[tuple[Pair, Random]]:
        drawn = []
        for i in range(count):
            rng = Random(f"policy/{config.seed}/{split}/{i}")
            pair = draw_pair(f"policy-{split}-{i:06d}", rng, of_pairs, seen)
            seen.add(question_of(pair.prompt))
            drawn.append((pair, rng))
        return drawn

    held_out = draw("held_out", config.num_held_out)
    dev = draw("dev", config.num_dev)
    trained = draw("rl", config.num_prompts)
    imitated = draw("sft", config.num_responses)
    return PolicySplits(
        responses=[_response(pair, rng, config.right_share) for pair, rng in imitated],
        pairs=[pair for pair, _ in trained],
        dev_pairs=[pair for pair, _ in dev],
        **{
            name: [PolicyPrompt(prompt=p.prompt, task=p.task, source=SOURCE, id=p.id) for p, _ in drawn]
            for name, drawn in (("prompts", trained), ("dev", dev), ("held_out", held_out))
        },
    )


def _response(pair: Pair, rng: Random, right_share: float) -> ResponseExample:
    num_right = sum(rng.random() < right_share for _ in items_of(pair.prompt))
    response = draw_response(pair.prompt, num_right, rng.randint(0, MAX_POLISH), rng)
    return ResponseExample(prompt=pair.prompt, response=response, source=SOURCE, id=pair.id)


def right_share(prompt: str, response: str) -> float:
    """The true reward: the share of the prompt's items that the response answers rightly."""
    marks = check(prompt, response)
    return sum(marks) / len(marks)
