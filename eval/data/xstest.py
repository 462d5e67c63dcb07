"""XSTest (paul-rottger/exaggerated-safety): CSV with a column `prompt`, such as model_completions/xstest_v2_….csv.

RewardBench has its prompts, paired with responses in a way that the files do not tell. So nothing is judged on it; they
are read to be kept out of training data.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from eval.data.files import find_files
from eval.data.items import Data, Item, as_messages, made
from patarm_core.fields import Fields
from rollout.contexts import read_text


def read_xstest(path: Path) -> Data:
    items = []
    for file in find_files(path, (".csv",)):
        rows = csv.DictReader(io.StringIO(read_text(file), newline=""))
        try:
            for row in rows:
                prompt = as_messages(Fields(row).text("prompt"))
                items.append(Item(id=str(row.get("id") or len(items) + 1), part="xstest", task="safety", prompt=prompt))
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{file}:{rows.line_num}: {error}") from None
    return made("xstest", items, {}, str(path), "prompts")
