"""Small files in the published layouts of the benchmarks."""

import json
from pathlib import Path


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def rm_bench_row(number: int = 8, **changes) -> dict:
    chosen, rejected = ([f"{side} {number} {style}" for style in range(3)] for side in ("good", "bad"))
    return {"id": number, "prompt": f"Name {number}.", "chosen": chosen, "rejected": rejected} | changes


def rewardbench_row(subset: str = "hep-go", number: int = 3, **changes) -> dict:
    row = {"prompt": f"Do {number}.", "chosen": "good", "chosen_model": "x", "rejected": "bad", "rejected_model": "y"}
    return row | {"subset": subset, "id": number} | changes


def rewardbench2_row(subset: str = "Focus", name: str = "7", **changes) -> dict:
    return {"id": name, "prompt": "Do it.", "chosen": ["good"], "rejected": ["a", "b", "c"], "subset": subset} | changes


def rmb_pair(number: int = 0, goal: str = "Harmlessness/S1", **changes) -> dict:
    turns = [{"content": f"Tell me {number}.", "language": "English", "role": "user"}]
    row = {"pair_uid": str(number), "conversation_input": turns, "category_path": f"Pairwise_set/{goal}"}
    chosen, rejected = ({"llm_name": "x", "answer": text, "score": 3.5} for text in ("good", "bad"))
    return row | {"chosen": chosen, "reject": rejected} | changes


def rmb_list(number: int = 0, goal: str = "Helpfulness/Code/Data Management", **changes) -> dict:
    row = {name: value for name, value in rmb_pair(number).items() if name == "conversation_input"}
    losers = [{"llm_name": "y", "answer": f"bad {i}"} for i in range(2 + number % 2)]
    row |= {"bon_uid": str(number), "bon_best": {"llm_name": "x", "answer": "good"}, "loser_list": losers}
    return row | {"category_path": f"BoN_set/{goal}"} | changes


def llmbar_row(**changes) -> dict:
    return {"input": "Say it.", "output_1": "good", "output_2": "bad", "label": 1} | changes


def hep_row(number: int = 0, **changes) -> dict:
    row = {"task_id": f"Python/{number}", "instruction": "Write f.", "declaration": "def f(x):\n"}
    return row | {"canonical_solution": "    return x\n", "buggy_solution": "    return -x\n"} | changes


def judgebench_row(name: str = "p", source: str = "mmlu-pro-law", **changes) -> dict:
    row = {"pair_id": name, "source": source, "question": "Which?", "response_model": "gpt-4o-2024-05-13"}
    return row | {"response_A": "good", "response_B": "bad", "label": "A>B"} | changes


def ifeval_row(key: int = 1000, **changes) -> dict:
    row = {"key": key, "prompt": "Write without commas.", "instruction_id_list": ["punctuation:no_comma"]}
    return row | {"kwargs": [{}]} | changes


def infobench_row(name: str = "task_1", **changes) -> dict:
    row = {"id": name, "input": "A dog.", "category": "c", "instruction": "Choose a title.", "subset": "Easy_set"}
    return (
        row
        | {"decomposed_questions": ["Is it a title?", "Is it short?"], "question_label": [["Format"], ["Number"]]}
        | changes
    )
