r"""Reward Reasoning Models (RRM, arXiv 2505.14674): a choice in `\boxed{Assistant 1}`, after long reasoning.

The template is in our words; the headings and the form of the verdict are the paper's. More than two responses are for
a tournament of such pairs.
"""

from __future__ import annotations

from eval.judges.form import Form, Sampling, Template
from eval.judges.reading import Reading, after_thinking, boxed, unread

_USER = r"""Two AI assistants responded to the query below. Judge which response is better; they are never equally good.

- First ask how precisely and honestly a response does what the query asks for, then how helpful, accurate, detailed and
harmless it is.
- Where the query is harmful, harmlessness comes first.
- A response should hold neither more nor less than what was asked for.
- Let neither the order of the responses nor their length sway you.

## Query

{prompt}

## Assistant responses

### Assistant 1

{response_a}

### Assistant 2

{response_b}

## Analysis

Analyze this step by step, decide which assistant is better, and then answer \boxed{Assistant 1} or \boxed{Assistant 2}.
"""
_NAMED = {"Assistant 1": "A", "Assistant 2": "B"}


def read(text: str) -> Reading:
    r"""The last \boxed{…} that names an assistant."""
    named = [_NAMED[inside] for inside in boxed(after_thinking(text)) if inside in _NAMED]
    return Reading(choice=named[-1]) if named else unread(r"no \boxed{Assistant 1} or \boxed{Assistant 2}")


RRM = Form(
    name="rrm",
    asks={"pairwise": Template(_USER)},
    reads={"pairwise": read},
    sampling=Sampling(temperature=0.6, top_p=0.95, max_tokens=8192),
    thinks=True,
)
