r"""DeepSeek-GRM (SPCT, arXiv 2504.02495): principles of its own, critiques, and a score of each response.

Scores are whole numbers from 1 to 10 in `\boxed{7}`, of two responses `\boxed{7, 4}`; votes are summed, so that a
pairwise judgment keeps both. The template is in our words, after the paper's description.
"""

from __future__ import annotations

from eval.judges.form import Form, Sampling, Template
from eval.judges.reading import Reading, boxed, higher, unread, whole_number

_HEAD = """\
You are an expert at scoring responses. Read the conversation, whose last turn is the user's query, and what the \
assistant answered.

#### Evaluation criteria ####
- Instruction adherence: does a response do all that was asked for, and nothing that was not?
- Usefulness: is it accurate, and does it help with what the query is about?
- Level of detail: does it cover what matters, at the length that it needs?
- Relevance: does it keep to the query?
Each goes from 9-10 points (fully) over 6-8 (mostly) and 3-5 (partly) down to 1-2 (hardly or not at all).

State further criteria that this query calls for, with the weight of each, and analyze step by step before you score. \
A score is a whole number from 1 to 10. Be as strict as you can.

#### Conversation ####
{prompt}
"""
_FORMAT = r"""
#### Output: three lines ####
Specific Criteria: <further criteria for this query, and their weights>
Analysis: <the {what} in the light of the criteria>
Scores: <{scores}>
"""


def _user(blocks: str, what: str, scores: str) -> str:
    return f"{_HEAD}\n{blocks}\n" + _FORMAT.replace("{what}", what).replace("{scores}", scores)


_ONE = _user(
    "#### Response to be scored ####\n[The Begin of Response]\n{response}\n[The End of Response]",
    "response",
    r"its overall score, as \boxed{x}",
)
_TWO = _user(
    "#### Responses to be scored ####\n[The Begin of Response 1]\n{response_a}\n[The End of Response 1]\n\n"
    "[The Begin of Response 2]\n{response_b}\n[The End of Response 2]",
    "responses compared",
    r"the overall scores of both in their order, as \boxed{x, x}",
)


def _scores(text: str, num: int) -> list[int] | None:
    r"""The last \boxed{…} with so many scores."""
    found = None
    for inside in boxed(text):
        numbers = [whole_number(part, 1, 10) for part in inside.split(",", num)]
        if len(numbers) == num and None not in numbers:
            found = numbers
    return found


def read_one(text: str) -> Reading:
    scores = _scores(text, 1)
    return unread(r"no \boxed{x} with a whole number from 1 to 10") if scores is None else Reading(score=float(*scores))


def read_two(text: str) -> Reading:
    scores = _scores(text, 2)
    if scores is None:
        return unread(r"no \boxed{x, x} with whole numbers from 1 to 10")
    first, second = map(float, scores)
    return Reading(choice=higher(first, second), scores=(first, second))


DEEPSEEK_GRM = Form(
    name="deepseek-grm",
    asks={"pointwise": Template(_ONE), "pairwise": Template(_TWO)},
    reads={"pointwise": read_one, "pairwise": read_two},
    sampling=Sampling(temperature=0.5, max_tokens=4096),
)
