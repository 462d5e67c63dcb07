"""The judgment a judge writes, and its two readers (arXiv 2510.24235, sec. 3.1 and app. figure 11).

    <think>…</think> <generate_rubrics>…</generate_rubrics> <eval>…</eval> <answer>8.3</answer>

`parse` is strict and feeds the reward; `read_answer` is lenient and serves the evaluation of any judge.
Both are total: they return a value for every string, in time linear in its length, and never raise on one.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

AnswerKind = Literal["score", "choice"]
JudgeMode = Literal["pointwise", "pairwise"]  # each response scored by itself, or one chosen of two
RubricSetting = Literal["adaptive", "primary", "generated"]
FormatError = Literal["tags", "score"]
Choice = Literal["A", "B"]

# In the order in which a judgment writes them. Inside a judgment, only these are "tags of ours".
JUDGMENT_TAGS = ("think", "generate_rubrics", "eval", "answer")
# The blocks of a judge prompt, and the turns of a conversation in one. A judgment may quote them, but judged text must
# not forge one: prompts escape ALL_TAGS.
INPUT_TAGS = ("task", "rubrics", "prompt", "response", "responseA", "responseB", "turn")
ALL_TAGS = JUDGMENT_TAGS + INPUT_TAGS

FORMAT_REWARD: dict[FormatError | None, float] = {
    None: 0.0,
    "tags": -1.5,  # a tag is missing, repeated, nested or out of order, or text follows </answer>
    "score": -1.0,  # the tags are right, the answer is not a number in [0, 10] (pairwise: not A or B)
}

MIN_SCORE, MAX_SCORE = 0, 10
# Decimals beyond this many are cut, not refused. Reading them exactly takes quadratic time, and Python neither
# reads nor prints integers above 4300 digits by default.
MAX_DECIMALS = 4000

# Exact case, no attributes, no inner space: `<Think>` and `<think >` are text. A match is of bounded length and needs
# no backtracking, so splitting is linear.
_TAG = re.compile("(</?(?:" + "|".join(JUDGMENT_TAGS) + ")>)")
_DECIMAL = re.compile(r"([0-9]+)(?:\.([0-9]+))?")


@dataclass(frozen=True)
class Judgment:
    """One parsed judgment. Texts are as written, white space included, and None after a tag error.

    `generated_rubrics` is also None in the `primary` setting. `score` is exact and None after any error or in pairwise
    mode; `choice` is None after any error or in pointwise mode.
    """

    think: str | None = None
    generated_rubrics: str | None = None
    evaluation: str | None = None
    score: Fraction | None = None
    choice: Choice | None = None
    error: FormatError | None = None

    @property
    def format_reward(self) -> float:
        """R_format: 0, -1.0 or -1.5."""
        return FORMAT_REWARD[self.error]


def judgment_tags(rubrics: RubricSetting = "adaptive") -> tuple[str, ...]:
    """Names of the tags that a judgment must hold, in order. `primary` asks for no generated rubrics."""
    if rubrics not in ("adaptive", "primary", "generated"):
        raise ValueError(f"rubrics must be 'adaptive', 'primary' or 'generated', got {rubrics!r}")
    return tuple(tag for tag in JUDGMENT_TAGS if rubrics != "primary" or tag != "generate_rubrics")


def parse(text: str, answer: AnswerKind = "score", rubrics: RubricSetting = "adaptive") -> Judgment:
    """Reads a judgment strictly: every tag opened and closed exactly once, in order.

    Text before `<think>` and between the blocks is allowed when it holds no judgment tag; only white space (in the
    sense of `str.isspace`) may follow `</answer>`.

    Args:
        text: the completion, any string.
        answer: "score" for pointwise judgments, "choice" for pairwise ones.
        rubrics: the rubric setting of the prompt; in "primary" a `<generate_rubrics>` tag is a tag error.

    Raises:
        ValueError: `answer` or `rubrics` is not one of the above; never because of `text`.
    """
    names = judgment_tags(rubrics)
    read = _reader(answer)
    parts = _TAG.split(text)  # [outside, tag, inside, tag, outside, …]
    if parts[1::2] != [tag for name in names for tag in (f"<{name}>", f"</{name}>")] or parts[-1].strip():
        return Judgment(error="tags")
    inside = dict(zip(names, parts[2::4], strict=True))
    value = read(inside["answer"])
    return Judgment(
        think=inside["think"],
        generated_rubrics=inside.get("generate_rubrics"),
        evaluation=inside["eval"],
        score=value if answer == "score" else None,
        choice=value if answer == "choice" else None,
        error="score" if value is None else None,
    )


def read_answer(text: str, answer: AnswerKind = "score") -> Fraction | Choice | None:
    """Reads the last well-formed answer, wherever it stands: a Fraction, "A" or "B", or None where there is none.

    Well-formed: `<answer>`, then a valid score (choice) in the grammar of `parse`, then `</answer>`. What is not, such
    as a truncated last answer or a quoted `<answer>score</answer>`, is passed over. All other tags are ignored, because
    judges leave some of them unclosed (the paper's own samples do).

    Raises:
        ValueError: `answer` is neither "score" nor "choice"; never because of `text`.
    """
    read = _reader(answer)
    parts = _TAG.split(text)  # [outside, tag, inside, tag, outside, …]
    for i in range(len(parts) - 4, 0, -2):
        if parts[i] == "<answer>" and parts[i + 2] == "</answer>" and (value := read(parts[i + 1])) is not None:
            return value
    return None


def _reader(answer: AnswerKind):
    if answer not in ("score", "choice"):
        raise ValueError(f"answer must be 'score' or 'choice', got {answer!r}")
    return _read_score if answer == "score" else _read_choice


def _read_choice(text: str) -> Choice | None:
    choice = text.strip()
    return choice if choice in ("A", "B") else None


def _read_score(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        return None
    whole, decimals = match[1].lstrip("0"), (match[2] or "").rstrip("0")
    if len(whole) > len(str(MAX_SCORE)):
        return None
    units = int(whole or "0")
    if units > MAX_SCORE or (units == MAX_SCORE and decimals):  # before the cut: 10.00…01 is above 10
        return None
    decimals = decimals[:MAX_DECIMALS]
    return units + Fraction(int(decimals or "0"), 10 ** len(decimals))
