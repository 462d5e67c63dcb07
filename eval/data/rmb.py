"""RMB (Zhou-Zoey/RMB-Reward-Model-Benchmark, RMB_dataset): pairs, and lists of one best response and several losers.

A folder of JSON files, by scenario. The rows of both kinds have `conversation_input` (messages) and `category_path`
(`Pairwise_set/Helpfulness/Code/…`, `BoN_set/Harmlessness/S10`); a response is an object with an `answer`:

    pairs  pair_uid, chosen, reject
    lists  bon_uid, bon_best, loser_list[]

Responses of an item are the chosen or best one, then the others.
"""

from __future__ import annotations

from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, as_messages, made
from patarm_core.benchmarks.rmb import GOALS, PARTS, SIZES
from patarm_core.fields import Fields, kind, show

_SETS = {"Pairwise_set": "pairwise", "BoN_set": "bon"}
_FORM = f"{'|'.join(_SETS)}/{'|'.join(goal.capitalize() for goal in GOALS)}/…"


def read_rmb(path: Path) -> Data:
    items = [one for file in find_files(path, (".json", ".jsonl")) for one in read_rows(file, _item)]
    return made("rmb", items, SIZES, str(path), "pairs and lists")


def _item(row: Fields) -> Item:
    task, goal, scenario = _category(row)
    if task == "pairwise":
        name, responses = (
            row.label("pair_uid"),
            [_answer(row, row.data.get(side), side) for side in ("chosen", "reject")],
        )
    else:
        losers = row.value("loser_list", "a list of responses")
        if not isinstance(losers, list) or not losers:
            found = "is empty" if losers == [] else f"is {kind(losers)}"
            raise row.error("loser_list", f"{found}; expected a list of at least one response")
        name, best = row.label("bon_uid"), _answer(row, row.data.get("bon_best"), "bon_best")
        responses = [best, *(_answer(row, one, f"loser_list[{i}]") for i, one in enumerate(losers))]
    return Item(
        id=f"{task}/{name}", part=PARTS[task, goal], task=_rubrics(goal, scenario),
        prompt=as_messages(row.messages("conversation_input")), responses=tuple(responses),
        row={"id": name, "task": task, "goal": goal},
    )  # fmt: skip


def _category(row: Fields) -> tuple[str, str, str]:
    """Kind of task, goal and scenario."""
    path = row.text("category_path")
    kind_of, _, rest = path.partition("/")
    goal, _, scenario = rest.partition("/")
    if kind_of not in _SETS or goal.lower() not in GOALS:
        raise row.error("category_path", f"is {show(path)}; expected {_FORM}")
    return _SETS[kind_of], goal.lower(), scenario


def _rubrics(goal: str, scenario: str) -> str:
    """The task whose rubrics a judge reads."""
    return "safety" if goal == "harmlessness" else "code" if scenario.startswith("Code/") else "chat"


def _answer(row: Fields, response: object, field: str) -> str:
    if not isinstance(response, dict):
        raise row.error(field, f"{'missing' if field not in row.data else f'is {kind(response)}'}; expected an answer")
    return Fields(response, f"{field}.").text("answer")
