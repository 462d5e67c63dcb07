"""JudgeBench (ScalerLab/JudgeBench): rows of pair_id, source, question, response_A, response_B, label ("A>B" or "B>A").

Its two sets, of pairs by GPT-4o (350) and by Claude (270), are two files and two benchmarks.
"""

from __future__ import annotations

from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, as_messages, made
from patarm_core.benchmarks.judgebench import CATEGORIES
from patarm_core.benchmarks.judgebench import SETS as SIZES
from patarm_core.fields import Fields

SETS = {writer: {source: sizes[category] for source, category in CATEGORIES.items()} for writer, sizes in SIZES.items()}
_TASKS = {"mmlu-pro": "chat", "livebench-reasoning": "math", "livebench-math": "math", "livecodebench": "code"}


def read_judgebench(path: Path) -> Data:
    writers: set[str] = set()

    def item(row: Fields) -> Item:
        source = row.text("source")
        part = next((part for part in _TASKS if source.startswith(part)), None)
        if part is None:
            raise row.error("source", f"is {source!r}; expected one that begins with {', '.join(_TASKS)}")
        writers.add(row.text("response_model", ""))
        name = row.text("pair_id")
        return Item(
            id=name, part=part, task=_TASKS[part], prompt=as_messages(row.prompt("question")),
            responses=(row.text("response_A"), row.text("response_B")),
            row={"id": name, "source": source, "label": row.one_of("label", ("A>B", "B>A"))},
        )  # fmt: skip

    items = [one for file in find_files(path, (".jsonl", ".json")) for one in read_rows(file, item)]
    is_claude = any("claude" in writer for writer in writers)
    if is_claude and any(writer and "claude" not in writer for writer in writers):
        raise ValueError(f"{path}: holds both sets of JudgeBench, of {' and '.join(sorted(writers))}; name one file")
    return made("judgebench", items, SETS["claude" if is_claude else "gpt-4o"], str(path), "pairs")
