"""IFEval (google-research/instruction_following_eval): does a response follow instructions that a program can check?

A row per prompt: the response, and the prompt's instructions with their settings as published (input_data.jsonl);
`aggregate ifeval --data input_data.jsonl` takes those from that file by key, so that a row needs no more than key and
response. null is a response that is missing:

    {"key": 1001, "response": "None here", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

Strict: the response as it is. Loose: any of eight variants, without its first line, its last line, or both, with stars
and without. A blank response follows nothing. The four numbers are the shares of prompts with all instructions
followed, and of instructions, strict and loose; Average is their mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from patarm_core.benchmarks.ifeval_checkers import CHECKERS, RELATIONS
from patarm_core.benchmarks.outcomes import mean
from patarm_core.benchmarks.report import Metric, Report, composites, incomplete_note, proportion, read_rows, whole
from patarm_core.fields import Fields, kind, show

NUM_PROMPTS, NUM_INSTRUCTIONS = 541, 834
RANDOM_LETTER = (1122, 1129)  # upstream draws a letter for them: "#" and "!" are none
MISSING_OUT = "missing responses left out"
NAMES = ("Average", "Prompt strict", "Instruction strict", "Prompt loose", "Instruction loose")


@dataclass(frozen=True, slots=True)
class Instruction:
    id: str
    check: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class _Judged:
    key: int
    response: str | None
    ids: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def report(rows: Sequence[Mapping]) -> Report:
    judged = read_rows(rows, read_row, unique="key")
    counts = (len(judged), sum(len(one.ids) for one in judged))
    missing = [
        f"{name}: {num} of {official}"
        for name, num, official in zip(("prompts", "instructions"), counts, (NUM_PROMPTS, NUM_INSTRUCTIONS))
        if num != official
    ]
    there = [one for one in judged if one.response is not None]
    tables = {"": _table(judged, missing), MISSING_OUT: _table(there, missing)}
    ids = [name for name in CHECKERS if any(name in one.ids for one in judged)]
    by_id = []
    for name in ids:
        followed = [strict for one in judged for of, strict in zip(one.ids, one.strict) if of == name]
        by_id.append(proportion(name, sum(followed), len(followed)))
    random_letter = [one.key for one in judged if one.key in RANDOM_LETTER]
    return Report(
        benchmark="IFEval",
        metrics=(*tables[""], *by_id),
        policies={MISSING_OUT: tables[MISSING_OUT]} if there and len(there) < len(judged) else {},
        num_items=len(judged),
        num_ties=0,
        num_unparsed=len(judged) - len(there),
        notes=(
            *incomplete_note(missing),
            "Shares by instruction are strict. Sentences, words and languages are found by patarm_core's own, "
            "deterministic rules (sentences.py, language.py), not by NLTK and langdetect.",
            f"{len(random_letter)} prompts are checked for the sign they ask for, where upstream draws a random letter "
            "(keys 1122 and 1129).",
            *(
                ["Key 2785 asks for what its row says; it was published with 3 placeholders and with 1."]
                if any(one.key == 2785 for one in judged)
                else []
            ),
        ),
    )


def follows(response: str, check: Callable[[str], bool]) -> bool:
    """Strict."""
    return bool(response.strip()) and check(response)


def follows_loosely(response: str, check: Callable[[str], bool]) -> bool:
    return any(follows(variant, check) for variant in variants(response))


def variants(response: str) -> list[str]:
    """The response and the seven others that the loose rule tries."""
    lines = response.split("\n")
    kept = {(False, False): response}
    for first, last in ((True, False), (False, True), (True, True)):
        kept[first, last] = "\n".join(lines[first : len(lines) - last]).strip()
    return [text.replace("*", "") if bare else text for text, bare in product(kept.values(), (False, True))]


def read_row(row: Mapping) -> _Judged:
    fields = Fields(row)
    key = fields.whole("key", 0, 1 << 53)
    if "response" not in row:
        raise fields.error("response", "missing; expected a text, or null for a missing response")
    response = fields.text("response", None)
    instructions = read_instructions(fields)
    text = response or ""
    return _Judged(
        key,
        response,
        tuple(one.id for one in instructions),
        tuple(follows(text, one.check) for one in instructions),
        tuple(follows_loosely(text, one.check) for one in instructions),
    )


def read_instructions(fields: Fields) -> list[Instruction]:
    """Those of a prompt, their settings checked."""
    names, settings = (_list(fields, name) for name in ("instruction_id_list", "kwargs"))
    if not names or len(names) != len(settings):
        raise fields.error("kwargs", f"has {len(settings)} entries; expected one for each of {len(names)} instructions")
    instructions = []
    for i, (name, given) in enumerate(zip(names, settings)):
        if not isinstance(name, str) or name not in CHECKERS:
            raise fields.error(f"instruction_id_list[{i}]", f"is {show(name)}; expected one of {', '.join(CHECKERS)}")
        checker, types = CHECKERS[name]
        kwargs = {setting: _setting(fields, f"kwargs[{i}]", given, setting, type_) for setting, type_ in types.items()}
        instructions.append(Instruction(name, lambda text, checker=checker, kwargs=kwargs: checker(text, **kwargs)))
    return instructions


def join(rows: Sequence[Mapping], prompts: Sequence[Mapping]) -> list[dict]:
    """Rows with the instructions of their prompts, by key; what a row brings itself stays.

    Rows whose key no prompt has come back as they are, and are refused for what they lack.
    """
    by_key = {prompt.get("key"): prompt for prompt in prompts}
    return [
        {**{name: by_key[row["key"]][name] for name in ("instruction_id_list", "kwargs")}, **row}
        if isinstance(row.get("key"), int) and row["key"] in by_key
        else dict(row)
        for row in rows
    ]


def _table(judged: Sequence[_Judged], missing: Sequence[str]) -> list[Metric]:
    """Average, then the four numbers; instructions of one prompt are not independent, so theirs are bootstrapped."""
    num_prompts, num = len(judged), sum(len(one.ids) for one in judged)
    if not judged:
        return []
    columns: dict[str, list[float]] = {"num": [len(one.ids) for one in judged]}
    for mode in ("strict", "loose"):
        followed = [getattr(one, mode) for one in judged]
        columns |= {f"prompt {mode}": list(map(all, followed)), f"instruction {mode}": list(map(sum, followed))}

    def statistic(sums: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
        of = sums["all"]
        numbers = {
            f"{unit.capitalize()} {mode}": of[f"{unit} {mode}"] / (num_prompts if unit == "prompt" else of["num"])
            for mode in ("strict", "loose")
            for unit in ("prompt", "instruction")
        }
        return {"Average": mean(numbers.values()), **numbers}

    found = composites(
        {"all": columns}, statistic, lambda key: (whole(key, missing), num if key.startswith("I") else num_prompts)
    )
    for mode in ("strict", "loose"):
        key = f"Prompt {mode}"
        found[key] = proportion(whole(key, missing), sum(columns[f"prompt {mode}"]), num_prompts)
    return [found[name] for name in NAMES]


def _list(fields: Fields, field: str) -> list:
    value = fields.value(field, "a list, as published; or name the file of the prompts with --data")
    if not isinstance(value, list):
        raise fields.error(field, f"is {kind(value)}; expected a list")
    return value


def _setting(fields: Fields, place: str, given: object, name: str, type_: type) -> object:
    value = given.get(name) if isinstance(given, dict) else None
    field, expected = f"{place}.{name}", {str: "a text", int: "a whole number", list: "a list of texts"}[type_]
    if type_ is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not type_ or (type_ is list and not all(isinstance(entry, str) for entry in value)):
        problem = "missing" if value is None else f"is {show(value)}"
        raise fields.error(field, f"{problem}; expected {expected}")
    if name.endswith("relation") and value not in RELATIONS:
        raise fields.error(field, f"is {show(value)}; expected one of {', '.join(RELATIONS)}")
    return value
