"""RewardBench (allenai/reward-bench, the `filtered` split): rows of subset, prompt, chosen, rejected.

And RewardBench 2 (allenai/reward-bench-2): rows of subset, prompt, chosen[], rejected[]; responses of an item are the
chosen ones, then the rejected ones.
"""

from __future__ import annotations

from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, as_messages, made
from patarm_core.benchmarks.rewardbench import SECTIONS, SIZES
from patarm_core.benchmarks.rewardbench2 import SIZES as SIZES_2
from patarm_core.fields import Fields

_TASK_OF_SECTION = {"Chat": "chat", "Chat Hard": "chat", "Safety": "safety", "Reasoning": "code"}
_TASKS = {subset: _TASK_OF_SECTION[section] for section, subsets in SECTIONS.items() for subset in subsets}
_TASKS["math-prm"] = "math"
CODE = {subset: num for subset, num in SIZES.items() if subset.startswith("hep-")}
_TASKS_2 = {"Precise IF": "instruction_following", "Math": "math", "Safety": "safety"}  # the others: chat


def read_rewardbench(path: Path) -> Data:
    def item(row: Fields) -> Item:
        subset = row.one_of("subset", tuple(SIZES))
        return pair(subset, row.label("id"), _TASKS[subset], row, row.text("chosen"), row.text("rejected"))

    items = [one for file in find_files(path) for one in read_rows(file, item)]
    return made("rewardbench", items, SIZES, str(path), "pairs")


def pair(subset: str, number: str, task: str, row: Fields, chosen: str, rejected: str, prompt="prompt") -> Item:
    """An item of two responses, the chosen one first."""
    return Item(
        id=f"{subset}/{number}", part=subset, task=task, prompt=as_messages(row.prompt(prompt)),
        responses=(chosen, rejected), row={"id": f"{subset}/{number}", "subset": subset},
    )  # fmt: skip


def read_rewardbench2(path: Path) -> Data:
    def item(row: Fields) -> Item:
        subset, name = row.one_of("subset", tuple(SIZES_2)), row.label("id")
        chosen, rejected = row.texts("chosen"), row.texts("rejected")
        if subset == "Ties" and name.partition(":")[0] not in ("ref", "tied"):
            raise row.error("id", f"is {name!r}; expected ref:NUMBER or tied:NUMBER in the subset Ties")
        if subset != "Ties" and (len(chosen), len(rejected)) != (1, 3):
            raise row.error("rejected", f"{len(chosen)} chosen and {len(rejected)} rejected; expected 1 and 3")
        return Item(
            id=f"{subset}/{name}", part=subset, task=_TASKS_2.get(subset, "chat"),
            prompt=as_messages(row.prompt("prompt")), responses=(*chosen, *rejected),
            row={"id": name, "subset": subset, "num_correct": len(chosen)},
        )  # fmt: skip

    items = [one for file in find_files(path) for one in read_rows(file, item)]
    return made("rewardbench2", items, SIZES_2, str(path), "prompts")
