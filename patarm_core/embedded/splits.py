"""The embedded preference set: judgments for SFT, pairs for RL, and two sets of pairs to measure on.

No prompt is in two places, not even with other opening words or its items in another order. The splits are drawn from
the last to the first, so that changing how much is trained on leaves the pairs measured on as they are.
"""

from dataclasses import dataclass
from random import Random

from patarm_core.embedded.judge import JudgeConfig, judge
from patarm_core.embedded.tasks import LETTERS, MAX_POLISH, TASKS, draw_prompt, draw_response, question_of
from patarm_core.pairs import JudgmentExample, Pair
from patarm_core.par import exact

SOURCE = "embedded"
Question = tuple[str, frozenset[str]]
_MAX_DRAWS = 1000  # of a prompt, before the supply counts as used up


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedConfig(JudgeConfig):
    seed: int = 0
    num_sft_pairs: int = 3000  # pairs whose two judgments are kept: twice as many rows
    num_rl_pairs: int = 3000
    num_dev_pairs: int = 500  # for choosing settings
    num_held_out_pairs: int = 1000  # for the reported result alone
    item_counts: tuple[int, ...] = (3,)  # items per prompt, drawn evenly
    close_share: float = 0.5  # share of pairs that differ by one item; the others differ by more
    min_margin: float = 2.0  # a pair's judgments are kept if chosen score - rejected score is above this
    sft_label_noise: float = 0.5  # share of sft pairs filtered with their sides exchanged; 0.5 hides the labels

    def __post_init__(self):
        JudgeConfig.__post_init__(self)
        for name in ("num_sft_pairs", "num_rl_pairs", "num_dev_pairs", "num_held_out_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is negative: {getattr(self, name)}")
        for name in ("close_share", "sft_label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        if not self.item_counts or not all(2 <= count <= len(LETTERS) for count in self.item_counts):
            raise ValueError(f"item_counts holds numbers from 2 to {len(LETTERS)}, got {self.item_counts}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    sft: list[JudgmentExample]
    rl: list[Pair]
    dev: list[Pair]
    held_out: list[Pair]


def make_splits(config: EmbeddedConfig) -> Splits:
    seen: set[Question] = set()
    held_out = _draw_pairs("held_out", config.num_held_out_pairs, config, seen)
    dev = _draw_pairs("dev", config.num_dev_pairs, config, seen)
    rl = _draw_pairs("rl", config.num_rl_pairs, config, seen)
    sft = _draw_judgments("sft", config.num_sft_pairs, config, seen)
    return Splits(sft=sft, rl=rl, dev=dev, held_out=held_out)


def _draw_pairs(split: str, num_pairs: int, config: EmbeddedConfig, seen: set[Question]) -> list[Pair]:
    pairs = []
    for i in range(num_pairs):
        pair = draw_pair(f"{split}-{i:06d}", Random(f"{config.seed}/{split}/{i}"), config, seen)
        seen.add(question_of(pair.prompt))
        pairs.append(pair)
    return pairs


def _draw_judgments(split: str, num_pairs: int, config: EmbeddedConfig, seen: set[Question]) -> list[JudgmentExample]:
    """Judges both sides of one pair after the other; keeps those that the judge tells apart (METHOD: sec. 5)."""
    examples: list[JudgmentExample] = []
    for i in range(1000 * num_pairs):
        if len(examples) == 2 * num_pairs:
            break
        rng = Random(f"{config.seed}/{split}/{i}")
        pair = draw_pair(f"{split}-{i:06d}", rng, config, seen)
        sides = [(response, judge(pair.prompt, response, rng, config)) for response in (pair.chosen, pair.rejected)]
        if rng.random() < config.sft_label_noise:
            sides.reverse()
        margin = exact(score_of(sides[0][1])) - exact(score_of(sides[1][1]))
        if margin <= exact(config.min_margin):
            continue
        seen.add(question_of(pair.prompt))
        rng.shuffle(sides)
        examples += [
            JudgmentExample(
                prompt=pair.prompt,
                response=response,
                task=pair.task,
                judgment=judgment,
                source=SOURCE,
                id=f"{pair.id}-{side}",
            )
            for side, (response, judgment) in enumerate(sides)
        ]
    if len(examples) < 2 * num_pairs:
        raise ValueError(f"too few pairs are judged more than min_margin={config.min_margin} apart")
    return examples


def draw_pair(id: str, rng: Random, config: EmbeddedConfig, seen: set[Question]) -> Pair:
    """A pair with an unseen question: two responses of different quality, each with a polish of its own."""
    task = rng.choice(TASKS)
    num_items = rng.choice(config.item_counts)
    draws = (draw_prompt(task, num_items, rng) for _ in range(_MAX_DRAWS))
    prompt = next((prompt for prompt in draws if question_of(prompt) not in seen), None)
    if prompt is None:
        raise ValueError(f"{len(seen)} prompts are drawn and there are too few new ones of task {task.name!r}")
    gap = 1 if rng.random() < config.close_share else rng.randint(2, num_items)
    worse = rng.randint(0, num_items - gap)
    chosen, rejected = (
        draw_response(prompt, num_right, rng.randint(0, MAX_POLISH), rng) for num_right in (worse + gap, worse)
    )
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, task=task.name, source=SOURCE, id=id)


def score_of(judgment: str) -> float:
    """The score of a judgment that `judge` wrote."""
    return float(judgment.rpartition("<answer>")[2].removesuffix("</answer>"))
