"""RewardBench (allenai/reward-bench, the `filtered` split): rows of subset, prompt, chosen, rejected.

And RewardBench 2 (allenai/reward-bench-2): rows of subset, prompt, chosen[], rejected[]; responses of an item are the
chosen ones, then the rejected ones.
"""

from __future__ import annotations

from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, as_messages, made
from patarm_core.fields import Fields

CHAT = {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40}
CHAT_HARD = {
    "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
}  # fmt: skip
SAFETY = {
    "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154, "xstest-should-respond": 250,
    "donotanswer": 136,
}  # fmt: skip
MATH = {"math-prm": 447}
CODE = {f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")}
SUBSETS = CHAT | CHAT_HARD | SAFETY | MATH | CODE
_TASKS = {
    subset: task
    for task, subsets in {"chat": CHAT | CHAT_HARD, "safety": SAFETY, "math": MATH, "code": CODE}.items()
    for subset in subsets
}
SUBSETS_2 = {"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495, "Ties": 102}
_TASKS_2 = {"Precise IF": "instruction_following", "Math": "math", "Safety": "safety"}  # the others: chat


def read_rewardbench(path: Path) -> Data:
    def item(row: Fields) -> Item:
        subset = row.one_of("subset", tuple(SUBSETS))
        number = row.value("id", "a number or a text")
        return pair(subset, number, _TASKS[subset], row, row.text("chosen"), row.text("rejected"))

    items = [one for file in find_files(path) for one in read_rows(file, item)]
    return made("rewardbench", items, SUBSETS, str(path), "pairs")


def pair(subset: str, number: object, task: str, row: Fields, chosen: str, rejected: str, prompt="prompt") -> Item:
    """An item of two responses, the chosen one first."""
    return Item(
        id=f"{subset}/{number}", part=subset, task=task, prompt=as_messages(row.prompt(prompt)),
        responses=(chosen, rejected), row={"id": f"{subset}/{number}", "subset": subset},
    )  # fmt: skip


def read_rewardbench2(path: Path) -> Data:
    def item(row: Fields) -> Item:
        subset, name = row.one_of("subset", tuple(SUBSETS_2)), str(row.value("id", "a text"))
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
    return made("rewardbench2", items, SUBSETS_2, str(path), "prompts")
