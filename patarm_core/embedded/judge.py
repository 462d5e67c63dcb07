"""The judge that SFT imitates: informative but noisy, and swayed by politeness.

With probability `careful` it checks the items and scores their share; otherwise it goes by the tone alone. What it
writes depends on the two texts and on the random numbers, never on which response of a pair was chosen.
"""

import math
from dataclasses import dataclass
from random import Random

from patarm_core.embedded.tasks import LETTERS, MAX_POLISH, answers_of, check, items_of, polish_of, task_of

TONES = ("cold", "plain", "warm", "lovely")  # by polish, 0 to MAX_POLISH

# task: (rubric of a careful judgment, its evaluation, rubric of a hasty one)
WORDING = {
    "chat": ("right words", "Usefulness", "friendly tone"),
    "math": ("right sums", "Correctness", "clear tone"),
    "code": ("right values", "Correctness", "neat tone"),
    "safety": ("right refusals", "Safety", "calm tone"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    careful: float = 0.4  # share of judgments that check the items
    mark_noise: float = 0.03  # probability that a mark is the wrong one
    score_noise: float = 0.5  # standard deviation of a score before it is rounded
    score_resolution: float = 0.5  # scores are multiples of this
    tone_low: float = 0.0  # a hasty judgment's mean score without any polish
    tone_high: float = 10.0  # and with all of it

    def __post_init__(self):
        for name in ("careful", "mark_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        if not self.score_noise >= 0:
            raise ValueError(f"score_noise is a standard deviation, got {self.score_noise}")
        if not 0.1 <= self.score_resolution <= 10:
            raise ValueError(
                f"score_resolution is from 0.1 (one decimal is written) to 10, got {self.score_resolution}"
            )


def judge(prompt: str, response: str, rng: Random, config: JudgeConfig) -> str:
    """One judgment, in the grammar that `patarm_core.judgment` parses."""
    task = task_of(prompt)
    rubric, evaluation, tone_rubric = WORDING[task.name]
    if rng.random() < config.careful:
        marks = [right != (rng.random() < config.mark_noise) for right in check(prompt, response)]
        # The right answer beside the given one: what must agree stands side by side.
        think = " ".join(
            f"{letter}) {item}{task.joint}{task.right_answer(item)} said {answer} {'ok' if mark else 'no'}"
            for letter, item, answer, mark in zip(LETTERS, items_of(prompt), answers_of(prompt, response), marks)
        )
        evaluation = f"{evaluation} {sum(marks)} of {len(marks)}"
        mean = 10 * sum(marks) / len(marks)
    else:
        rubric = tone_rubric
        polish = polish_of(response)
        think = f"reads {TONES[polish]}"
        evaluation = f"Tone {polish} of {MAX_POLISH}"
        mean = config.tone_low + (config.tone_high - config.tone_low) * polish / MAX_POLISH
    score = write_score(rng.gauss(mean, config.score_noise), config.score_resolution)
    return (
        f"<think>{think}</think>\n<generate_rubrics>{rubric}</generate_rubrics>\n"
        f"<eval>{evaluation}</eval>\n<answer>{score}</answer>"
    )


def write_score(value: float, resolution: float) -> str:
    """The nearest multiple of `resolution` within [0, 10], with one decimal."""
    steps = math.floor(value / resolution + 0.5)
    return f"{resolution * min(max(steps, 0), math.floor(10 / resolution + 1e-9)):.1f}"
