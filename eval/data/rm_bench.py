"""RM-Bench (THU-KEG/RM-Bench): rows of prompt, chosen[3], rejected[3], each in three styles.

Read from its files by domain (`chat_filtered.json`, `safety-refuse_filtered.json`, …), a folder of them, or one file
whose rows name their `domain`. Responses of an item: the three chosen ones, then the three rejected ones.
"""

from __future__ import annotations

from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, as_messages, made
from patarm_core.benchmarks.rm_bench import NUM_STYLES
from patarm_core.fields import Fields

DOMAINS = {"chat": 129, "math": 529, "code": 228, "safety-refuse": 284, "safety-response": 157}


def read_rm_bench(path: Path) -> Data:
    items: list[Item] = []
    for file in find_files(path, (".json", ".jsonl", ".parquet")):
        of_file = next((domain for domain in DOMAINS if file.name.startswith(domain)), None)

        def item(row: Fields, of_file: str | None = of_file) -> Item:
            domain = row.one_of("domain", tuple(DOMAINS), *([of_file] if of_file else []))
            number = row.label("id")
            chosen, rejected = (row.texts(side, NUM_STYLES) for side in ("chosen", "rejected"))
            name = number if number.startswith(domain) else f"{domain}/{number}"
            return Item(
                id=name, part=domain, task=domain.partition("-")[0], prompt=as_messages(row.prompt("prompt")),
                responses=(*chosen, *rejected), row={"id": name, "domain": domain},
            )  # fmt: skip

        items += read_rows(file, item)
    return made("rm_bench", items, DOMAINS, str(path), "prompts")
