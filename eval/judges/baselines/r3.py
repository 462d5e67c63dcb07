"""R3 (arXiv 2505.13388): explanation and score as JSON, by a rubric; pointwise 1 to 5, pairwise a response.

Templates and rubrics are in our words; headings, fields and values are those of rubricreward/r3:
src/dataset_gen/rubrics_gen/prompts.py, the reading that of src/evaluation/eval.py, which cuts decimals off.
"""

from __future__ import annotations

import re

from eval.judges.form import Form, Sampling, Template
from eval.judges.reading import Reading, after_thinking, unread

_HEAD = """\
Judge {what} fairly and in detail by the given task, input and evaluation rubric.

### TASK
Answer the user as a helpful, accurate and harmless assistant does.

### INPUT
{prompt}
"""
_ONE = (
    _HEAD.replace("{what}", "the response")
    + """
### RESPONSE
{response}

### EVALUATION RUBRIC
1: Does not do what was asked for, or is wrong, misleading or harmful.
2: Touches on the request, with serious mistakes or gaps.
3: Answers in part; mistakes or omissions matter.
4: Right and useful, with small flaws.
5: Fully right, complete, clear and safe.

### OUTPUT FORMAT
Return JSON with two fields:
{"explanation": "why the response has this score", "score": "one of 1, 2, 3, 4, 5"}

### EVALUATION
"""
)
_TWO = (
    _HEAD.replace("{what}", "the two responses")
    + """
### RESPONSE 1
{response_a}

### RESPONSE 2
{response_b}

### EVALUATION RUBRIC
Response 1: Response 1 does better what was asked for: more accurate, complete, clear and safe.
Response 2: Response 2 does better what was asked for: more accurate, complete, clear and safe.

### OUTPUT FORMAT
Return JSON with two fields:
{"explanation": "why this response is better", "score": "Response 1 or Response 2"}

### EVALUATION
"""
)
# Every quantifier is bounded, so that a place where it fails costs no more than a constant.
_SCORE = re.compile(
    r'\bscore\\{0,2}"?\s{0,20}:\s{0,20}\\{0,2}"?(?:Response ([12])|([0-9]{1,4})(?:\.[0-9]{1,20})?)(?![\w.])', re.ASCII
)


def _found(text: str) -> re.Match | None:
    return _SCORE.search(after_thinking(text))


def read_one(text: str) -> Reading:
    found = _found(text)
    if found is None or found[2] is None:
        return unread('no "score" with a number')
    score = int(found[2])
    return Reading(score=float(score)) if 1 <= score <= 5 else unread("the score is not from 1 to 5")


def read_two(text: str) -> Reading:
    found = _found(text)
    if found is None or found[1] is None:
        return unread('no "score" with Response 1 or Response 2')
    return Reading(choice="A" if found[1] == "1" else "B")


R3 = Form(
    name="r3",
    asks={"pointwise": Template(_ONE), "pairwise": Template(_TWO)},
    reads={"pointwise": read_one, "pairwise": read_two},
    sampling=Sampling(temperature=0.6, top_p=0.95, top_k=20, max_tokens=8192),
    thinks=True,
)
