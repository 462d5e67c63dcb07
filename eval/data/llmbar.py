"""LLMBar (princeton-nlp/LLMBar): rows of input, output_1, output_2, label (1 or 2), one file per subset.

Read from the files of its repository (`Natural/dataset.json`, `Adversarial/Neighbor/dataset.json`, …) or from files
called `Natural.json`, `Adversarial_Neighbor.json`, ….
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, as_messages, made
from patarm_core.benchmarks.llmbar import SIZES
from patarm_core.fields import Fields


def read_llmbar(path: Path) -> Data:
    items: list[Item] = []
    for file in find_files(path, (".json",)):
        subset = next((name for name in SIZES if name in (file.parent.name, file.stem.rpartition("_")[2])), None)
        if subset is None:
            raise ValueError(f"{file}: its name holds no subset of LLMBar; they are {', '.join(SIZES)}")
        numbers = count()

        def item(row: Fields, subset: str = subset, numbers=numbers) -> Item:
            number = next(numbers)
            return Item(
                id=f"{subset}/{number}", part=subset, task="instruction_following",
                prompt=as_messages(row.prompt("input")), responses=(row.text("output_1"), row.text("output_2")),
                row={"id": f"{subset}/{number}", "subset": subset, "label": row.whole("label", 1, 2)},
            )  # fmt: skip

        items += read_rows(file, item)
    return made("llmbar", items, SIZES, str(path), "pairs")
