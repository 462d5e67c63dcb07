"""JudgeLRM (arXiv 2504.00050): two scores from 1 to 10, after reasoning.

The template is in our words; its blocks, the tags and the opening `<think>` of the judge's turn are those of
NuoJohnChen/JudgeLRM: src/examples/data_preprocess/judgelrm.py, the reading that of
src/verl/utils/reward_score/judgelrm.py: the first two <answer> tags must hold whole numbers from 0 to 10.
"""

from __future__ import annotations

from eval.judges.form import Form, Sampling, Template
from eval.judges.reading import Reading, after_thinking, between, higher, unread, whole_number

_SYSTEM = """\
You are a helpful assistant that judges two AI assistants by their answers to a question. First reason step by step in \
your mind, within <think> </think> tags, about the answers of both assistants. Then score each assistant from 1 to 10, \
higher being better, by helpfulness, relevance, accuracy and level of detail; let no order, length or style bias you. \
Give the two scores within <answer> </answer> tags, the first assistant's first, for example \
<answer>3</answer><answer>5</answer>"""

_USER = """\
[Question]
{prompt}

[Assistant 1’s Answer]
{response_a}

[Assistant 2’s Answer]
{response_b}"""


def read(text: str) -> Reading:
    answers = list(between(after_thinking(text), "<answer>", "</answer>"))[:2]
    if len(answers) < 2:
        return unread(f"{len(answers)} of 2 <answer> tags after the thinking")
    first, second = (whole_number(answer, 0, 10) for answer in answers)
    if first is None or second is None:
        return unread("an <answer> is no whole number from 0 to 10")
    return Reading(choice=higher(first, second))


JUDGELRM = Form(
    name="judgelrm",
    asks={"pairwise": Template(_USER, _SYSTEM)},
    reads={"pairwise": read},
    sampling=Sampling(temperature=0.0, max_tokens=2048),
    opening="<think>",
)
