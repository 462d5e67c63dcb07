"""The layout of the released files `sft_train` and `rl_train_mix`: two rows a pair, the chosen one first.

The files themselves are not at hand. What is known: 35.6k and 41.7k rows, twice the pairs; a sampler that takes rows
2i and 2i + 1 for a pair; and a reward manager that groups them by (source, id). The other field names are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from patarm_core.pairs import JudgmentExample, Pair
from patarm_core.prompts import Prompt

Render = Callable[[Prompt, str, str], str]  # (prompt, response, task): what the judge reads


def rl_rows(pair: Pair, render: Render) -> list[str]:
    """Two lines of JSON, without their line ends."""
    return [
        _row(pair, side, render(pair.prompt, response, pair.task), ground_truth=side)
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]


def sft_rows(examples: Sequence[tuple[str, JudgmentExample]], render: Render) -> list[str]:
    """Of (side, judgment), a pair's two one after the other."""
    return [_row(row, side, render(row.prompt, row.response, row.task), answer=row.judgment) for side, row in examples]


def _row(row: Pair | JudgmentExample, side: str, content: str, answer: str | None = None, **more: str) -> str:
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    known = {"source": row.source, "id": row.id, "side": side, "task": row.task, "messages": messages}
    return json.dumps(known | more, ensure_ascii=False)
