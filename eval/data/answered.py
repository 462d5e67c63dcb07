"""Benchmarks whose prompts a policy answers: IFEval, and InFoBench, whose questions a judge answers with yes or no.

ifeval     google-research/instruction_following_eval: key, prompt, instruction_id_list, kwargs
infobench  qinyiwei/InfoBench: id, instruction, input, decomposed_questions, subset, question_label
"""

from __future__ import annotations

from pathlib import Path

from eval.data.files import find_files, read_rows
from eval.data.items import Data, Item, as_messages, made
from patarm_core.benchmarks.ifeval import NUM_INSTRUCTIONS, NUM_PROMPTS, read_instructions
from patarm_core.benchmarks.infobench import NUM_QUESTIONS, SIZES, read_labels
from patarm_core.fields import Fields, kind


def read_ifeval(path: Path) -> Data:
    def item(row: Fields) -> Item:
        key, names = row.whole("key", 0, 1 << 53), row.texts("instruction_id_list")
        settings = row.value("kwargs", "a list of objects, one for each instruction")
        if not isinstance(settings, list) or len(settings) != len(names):
            has = f"{len(settings)} entries" if isinstance(settings, list) else kind(settings)
            raise row.error("kwargs", f"is {has}; expected a list of {len(names)} objects, one for each instruction")
        for number, one in enumerate(settings):
            if not isinstance(one, dict):
                raise row.error(f"kwargs[{number}]", f"is {kind(one)}; expected an object")
        read_instructions(row)  # what cannot be checked is told before anything is asked
        prompt = row.text("prompt")
        given = {"key": key, "prompt": prompt, "instruction_id_list": list(names), "kwargs": settings}
        return Item(
            id=str(key),
            part="prompts",
            task="instruction_following",
            prompt=as_messages(row.prompt("prompt")),
            row=given,
        )

    items = [one for file in find_files(path, (".jsonl", ".json")) for one in read_rows(file, item)]
    data = made("ifeval", items, {"prompts": NUM_PROMPTS}, str(path), "prompts")
    num = sum(len(item.row["instruction_id_list"]) for item in items)
    return _with_count(data, len(items) == NUM_PROMPTS, "instructions", num, NUM_INSTRUCTIONS)


def read_infobench(path: Path) -> Data:
    """Rows that have an `output` bring their response along: `responses` then holds it."""

    def item(row: Fields) -> Item:
        name, subset = row.text("id"), row.one_of("subset", tuple(SIZES))
        instruction, given = row.text("instruction"), row.text("input", "")
        questions = row.texts("decomposed_questions")
        if not questions:
            raise row.error("decomposed_questions", "is empty; expected at least one question")
        asked = row.prompt("instruction") if not given else f"{instruction}\n\n{given}"
        output = row.text("output", None)
        labels = [list(of_question) for of_question in read_labels(row, len(questions))] or None
        return Item(
            id=name, part=subset, task="instruction_following", prompt=as_messages(asked),
            responses=() if output is None else (output,),
            row={"id": name, "subset": subset, "input": given, "questions": list(questions), "labels": labels},
        )  # fmt: skip

    items = [one for file in find_files(path, (".jsonl", ".json")) for one in read_rows(file, item)]
    data = made("infobench", items, SIZES, str(path), "instructions")
    for subset, official in NUM_QUESTIONS.items():
        of_subset = [item for item in items if item.part == subset]
        num = sum(len(item.row["questions"]) for item in of_subset)
        data = _with_count(data, len(of_subset) == SIZES[subset], f"questions of {subset}", num, official)
    return data


def _with_count(data: Data, is_whole: bool, noun: str, num: int, official: int) -> Data:
    """A warning if a part that has all of its rows has other contents."""
    if not is_whole or num == official:
        return data
    told = f"{data.benchmark}: {num} {noun} here and {official} as published"
    return Data(benchmark=data.benchmark, items=data.items, warnings=(*data.warnings, told))
