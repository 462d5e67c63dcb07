"""HumanEvalPack (bigcode-project/octopack) as RewardBench's hep-* subsets: right against buggy solutions.

One file per language, `python.jsonl`, or `python/data/humanevalpack.jsonl`. The prompt is the row's `instruction`; each
response is the whole function, its declaration and a solution.
"""

from __future__ import annotations

from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, made
from eval.data.rewardbench import CODE, pair
from patarm_core.fields import Fields


def read_humanevalpack(path: Path) -> Data:
    items: list[Item] = []
    for file in find_files(path, (".jsonl",)):
        names = (file.stem, *(folder.name for folder in file.parents))
        subset = next((f"hep-{name}" for name in names if f"hep-{name}" in CODE), None)
        if subset is None:
            languages = ", ".join(name.removeprefix("hep-") for name in CODE)
            raise ValueError(f"{file}: neither the file nor its folder is called after a language: {languages}")

        def item(row: Fields, subset: str = subset) -> Item:
            declaration = row.text("declaration")
            right, buggy = (declaration + row.text(name) for name in ("canonical_solution", "buggy_solution"))
            return pair(subset, row.text("task_id"), "code", row, right, buggy, "instruction")

        items += read_rows(file, item)
    return made("hep", items, CODE, str(path), "pairs")
