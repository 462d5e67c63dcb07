"""Sampled judgments of report.html: both sides of a pair next to each other, or a choice between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from patarm_core.judgment import JUDGMENT_TAGS

BOTH = "both responses"  # of a pairwise judgment
ANSWER = "answer"  # of a policy
MAX_STEPS = 12  # shown, the first and the last among them: at 4,096 tokens each, all of a run would be megabytes

_TAG = re.compile(rf"&lt;/?(?:{'|'.join(JUDGMENT_TAGS)})&gt;")


def judgments(samples: Sequence[dict]) -> str:
    """One block per sampled step; "" if there are no samples.

    Args:
        samples: lines of samples.jsonl.
    """
    by_step: dict[tuple[str, int], list[dict]] = {}
    for sample in samples:
        by_step.setdefault((sample["stage"], sample["step"]), []).append(sample)
    if not by_step:
        return ""
    shown = spread(list(by_step), MAX_STEPS)
    is_policy = any(sample.get("side") == ANSWER for sample in samples)
    title, what = "Judgments", "The first judgment of each side of a few pairs"
    if is_policy:
        title, what = "Answers", "The first answer to each of a few prompts"
    parts = [
        f"<h2>{title}</h2>",
        f'<p class="muted">{what}, as sampled in training; '
        f"{len(shown)} of {len(by_step)} sampled steps, the last one open. All are in samples.jsonl.</p>",
    ]
    for stage, step in shown:
        rows = by_step[stage, step]
        pairs: dict[tuple[str, str], dict[str, dict]] = {}
        for row in rows:
            pairs.setdefault((row["source"], row["id"]), {})[row.get("side", BOTH)] = row
        inside = "\n".join(_pair(f"{source}, {name}", sides) for (source, name), sides in pairs.items())
        is_open = " open" if (stage, step) == shown[-1] else ""
        word = "choices" if all(BOTH in sides for sides in pairs.values()) else "scores"
        told = f"{word} {', '.join(_scores(sides) for sides in pairs.values())}"
        summary = f'{escape(stage)} step {step} <span class="muted">{escape(told)}</span>'
        parts.append(f'<details{is_open}><summary>{summary}</summary><div class="inside">\n{inside}\n</div></details>')
    return "\n".join(parts)


def spread(items: Sequence, most: int) -> list:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def _scores(sides: dict[str, dict]) -> str:
    for alone in (BOTH, ANSWER):
        if alone in sides:
            return _score(sides[alone])
    return " : ".join(_score(sides[side]) if side in sides else "-" for side in ("chosen", "rejected"))


def _pair(name: str, sides: dict[str, dict]) -> str:
    prompt = next((row["prompt"] for row in sides.values() if row.get("prompt")), None)
    asked = f'<p class="label">prompt</p><pre class="judged">{escape(prompt)}</pre>' if prompt else ""
    columns = "\n".join(_side(sides[side]) for side in ("chosen", "rejected", BOTH, ANSWER) if side in sides)
    return f'<div class="pair"><p class="label">{escape(name)}</p>{asked}\n<div class="sides">\n{columns}\n</div></div>'


def _side(row: dict) -> str:
    reward = row.get("reward")
    kind = "muted" if not reward else "good" if reward > 0 else "bad"
    earned = "" if reward is None else f"reward {reward:+g}"
    problem = f"{row['error']} error" if row.get("error") else row.get("problem")  # of a policy, why there is no score
    error = f'<span class="bad">{escape(problem)}</span>' if problem else ""
    response = row.get("response")
    shown = f'<p class="label">response</p><pre class="judged">{escape(response)}</pre>' if response else ""
    verdict = f"{'choice' if 'choice' in row else 'score'} {_score(row)}"
    verdict += "" if row.get("checked") is None else f", checker {row['checked']:g}"
    text = _TAG.sub(lambda match: f'<span class="tag">{match[0]}</span>', escape(row["judgment"]))
    judgment = f'<p class="label">judgment</p><pre>{text}</pre>' if text or row.get("side") != ANSWER else ""
    return (
        f'<div><div class="verdict"><strong>{escape(row.get("side", BOTH))}</strong><span>{escape(verdict)}</span>'
        f'<span class="{kind}">{earned}</span>{error}</div>{shown}{judgment}</div>'
    )


def _score(row: dict) -> str:
    """The score, or which response was chosen."""
    if "choice" in row:
        return row["choice"] or "-"
    return "-" if row["score"] is None else f"{row['score']:g}"
