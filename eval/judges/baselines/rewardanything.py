"""RewardAnything (arXiv 2506.03637): scores 1 to 5 and a ranking of named responses, by a principle, as JSON.

The template and the principle are in our words; fields and names (`model-1`, `model-2`) are those of
zhuohaoyu/RewardAnything: rewardanything/processing.py. Its repairs of broken JSON go only so far here: code fences and
what stands around the outer braces are dropped. Of two equal scores the ranking decides, as it is asked to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from eval.judges.form import Form, Sampling, Turns
from eval.judges.reading import Reading, after_thinking, higher, unread
from patarm_core.prompts import Prompt, escape, flatten

_SYSTEM = """\
You judge responses of models by a given **evaluation principle**. How well a response keeps to the principle comes \
before general preferences; still, harmful content is not to be endorsed.

1. Read the principle, the prompt and all responses, and think briefly about how each response stands to the principle.
2. Score each response from 1 to 5: 5 keeps to it perfectly and is excellent, 4 strongly with small limits, 3 in the \
main, 2 in part with gaps that matter, 1 poorly or against it. Use the whole range where responses differ much.
3. Order the responses from best to worst, those with equal scores too.

Output ONLY this JSON:
{"scores": {"model-1": 2, "model-2": 4, ...}, "best-to-worst": ["model-2", "model-1", ...]}"""
_PRINCIPLE = (
    "Prefer the response that does what the prompt asks for: accurate, complete, relevant, clear and safe. Neither "
    "length nor style counts for itself."
)
_NAMES = ("model-1", "model-2")
_MOST_CHARACTERS = 20_000  # of an answer; it takes no more than a hundred


def ask(prompt: Prompt, responses: Sequence[str], task: str) -> Turns:
    named = {name: escape(response) for name, response in zip(_NAMES, responses, strict=True)}
    content = {"principle": _PRINCIPLE, "prompt": flatten(prompt), "responses": named}
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": json.dumps(content, ensure_ascii=False)},
    ]


def read(text: str) -> Reading:
    answer = after_thinking(text)
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0 or end < start or end - start > _MOST_CHARACTERS:
        return unread("no JSON object after the thinking")
    try:
        said = json.loads(answer[start : end + 1])
    except (ValueError, RecursionError):
        return unread("not JSON")
    scores = said.get("scores") if isinstance(said, dict) else None
    both = [_score(scores.get(name)) for name in _NAMES] if isinstance(scores, dict) else [None]
    if None in both:
        return unread("no scores of model-1 and model-2 from 1 to 5")
    choice, ranking = higher(*both), said.get("best-to-worst", said.get("best-to-worse"))
    if choice == "tie" and isinstance(ranking, list) and sorted(map(str, ranking)) == list(_NAMES):
        choice = "A" if ranking[0] == _NAMES[0] else "B"
    return Reading(choice=choice)


def _score(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 1 <= value <= 5 else None


REWARDANYTHING = Form(
    name="rewardanything",
    asks={"pairwise": ask},
    reads={"pairwise": read},
    sampling=Sampling(temperature=0.0, max_tokens=4096),
    thinks=True,
)
