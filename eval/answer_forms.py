"""Two forms for models that answer: the policy of IFEval and InFoBench, and InFoBench's judge in a chat that grows.

Both are asked and kept as judges are, by our engine or by an endpoint, so their runs resume and count alike.
"""

from __future__ import annotations

from eval.judges.form import Form, Sampling, Turns
from eval.judges.reading import Reading, after_thinking, unread
from patarm_core.benchmarks.infobench import read_verdict
from patarm_core.prompts import Prompt

NO_RESPONSE = ""  # what stands for the response of a question that asks for one


def policy_form() -> Form:
    """Greedy; the question's prompt as it stands."""
    return Form(
        name="policy", asks={"pointwise": _as_it_stands}, reads={"pointwise": _response},
        sampling=Sampling(temperature=0.0, max_tokens=2048),
    )  # fmt: skip


def yes_no_form() -> Form:
    """Greedy; the question's prompt is the chat so far, its response what is asked next. A score of 1 is a yes."""
    return Form(
        name="yes or no", asks={"pointwise": _with_next}, reads={"pointwise": _verdict},
        sampling=Sampling(temperature=0.0, max_tokens=256),
    )  # fmt: skip


def response_of(text: str | None) -> str:
    """What a reply says to its reader: nothing of what it thinks, and nothing at all if it only thinks."""
    return after_thinking(text or "").strip()


def _as_it_stands(prompt: Prompt, responses, task: str) -> Turns:
    return _turns(prompt)


def _with_next(prompt: Prompt, responses, task: str) -> Turns:
    return [*_turns(prompt), {"role": "user", "content": responses[0]}]


def _turns(prompt: Prompt) -> Turns:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def _response(text: str) -> Reading:
    return Reading() if response_of(text) else unread("nothing but thoughts")


def _verdict(text: str) -> Reading:
    verdict = read_verdict(response_of(text))
    return unread("neither yes nor no") if verdict is None else Reading(score=float(verdict))
