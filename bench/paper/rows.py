"""What the experiments train and measure on beside the recipe's own data: the same judgments in other forms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from patarm_core.embedded.tasks import check, draw_response
from patarm_core.judgment import parse
from patarm_core.pairs import ChoiceExample, JudgmentExample, Pair

STYLES = (0, 1, 3)  # polite phrases around the same answers, for RM-Bench's concise, long and long markdown
FILES = {"chat": "chat", "math": "math", "code": "code", "safety": "safety-refuse"}  # task: RM-Bench's name


def without_rubrics(examples: Sequence[JudgmentExample]) -> list[JudgmentExample]:
    """The judgments of the setting `primary`: the same, without the block of generated rubrics."""
    found = []
    for example in examples:
        before, _, rest = example.judgment.partition("<generate_rubrics>")
        found.append(replace(example, judgment=before + rest.partition("</generate_rubrics>")[2].lstrip()))
    return found


def as_choices(examples: Sequence[JudgmentExample]) -> list[ChoiceExample]:
    """Pairwise judgments made of pointwise ones: two in a row of one prompt become one that prefers the higher score.

    What is judged by itself, of equal scores or not well-formed is left out. Which response is A depends on the
    prompt and the responses alone.
    """
    found, i = [], 0
    while i + 1 < len(examples):
        first, second = examples[i], examples[i + 1]
        if first.prompt != second.prompt:
            i += 1
            continue
        i += 2
        if _coin(first.id, first.response, second.response):
            first, second = second, first
        a, b = parse(first.judgment), parse(second.judgment)
        if a.score is None or b.score is None or a.score == b.score:
            continue
        rubrics = " ".join(dict.fromkeys([a.generated_rubrics, b.generated_rubrics]))
        judgment = (
            f"<think>A: {a.think} B: {b.think}</think>\n<generate_rubrics>{rubrics}</generate_rubrics>\n"
            f"<eval>A {a.evaluation} B {b.evaluation}</eval>\n<answer>{'A' if a.score > b.score else 'B'}</answer>"
        )
        found.append(
            ChoiceExample(
                prompt=first.prompt, response_a=first.response, response_b=second.response, task=first.task,
                judgment=judgment, source=first.source, id=first.id,
            )
        )  # fmt: skip
    return found


def _coin(*texts: str) -> bool:
    return bool(hashlib.sha256("\0".join(texts).encode()).digest()[0] & 1)


def rm_bench_files(pairs: Sequence[Pair], num_of_task: int) -> dict[str, str]:
    """RM-Bench of pairs of the embedded set, as JSON by file name: each response's answers in three styles.

    Args:
        num_of_task: prompts of each task, the first ones of the pairs.
    """
    files = {}
    for task, name in FILES.items():
        rows = []
        for pair in [pair for pair in pairs if pair.task == task][:num_of_task]:
            sides = {}
            for side in ("chosen", "rejected"):
                num_right = sum(check(pair.prompt, getattr(pair, side)))
                # The style is drawn last: equal seeds give equal answers.
                seed = f"{pair.source}/{pair.id}/{side}"
                sides[side] = [draw_response(pair.prompt, num_right, polish, Random(seed)) for polish in STYLES]
            rows.append({"id": pair.id, "prompt": pair.prompt, **sides})
        files[f"{name}_filtered.json"] = json.dumps(rows, indent=1) + "\n"
    return files
