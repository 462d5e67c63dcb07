"""Benchmarks that a policy answers: IFEval, whose rules judge, and InFoBench, where a judge is asked about the answers.

InFoBench's judge is asked one question after the other in a chat that grows, as published (qinyiwei/InfoBench:
evaluation.py); the instructions that open it are in our words.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from eval.answer_forms import NO_RESPONSE, response_of
from eval.benchmark_run import fingerprint_of, write_rows
from eval.data.items import Data, Item
from eval.judges.judge import Drawn, Judge, Question
from eval.judgments import Judgments, open_judgments
from eval.run_report import Voted, counts_of, write_reports

OPENING = (
    "You are given a text that was generated, with the input it was made from if there was one, and then questions "
    "about it, one at a time. Answer each question with YES or NO alone. YES means that the text does all of what the "
    "question asks; a small inaccuracy is enough for NO. NO means that it does not, or that it says nothing from which "
    "this could be told."
)


def run_ifeval(data: Data, policy: Judge, out: Path, retry: bool = False) -> list[Voted]:
    """Writes responses, rows and reports into the folder; it goes on where it was interrupted."""
    answers = _answers(data, policy, out, retry)
    rows = [{**item.row, "response": _response(answers[item.id])} for item in data.items]
    drawn = [[answers[item.id]] for item in data.items]
    return _reported(data, _settings(data, policy), rows, out, drawn, "responses")


def run_infobench(data: Data, policy: Judge | None, judge: Judge, out: Path, retry: bool = False) -> list[Voted]:
    """Writes responses, judgments, rows and reports into the folder; it goes on where it was interrupted.

    Args:
        policy: None: the responses that the data brings along are judged.

    Raises:
        ValueError: there is no policy, and an item has no response.
    """
    settings = _settings(data, policy) | fingerprint_of("judge", judge)
    lost: list[list[Drawn]] = []  # there is no response, and so nothing to ask about
    if policy is None:
        texts = {}
        for item in data.items:
            if not item.responses:
                raise ValueError(f"{item.id} of {data.benchmark} has no output; name the --model that answers")
            texts[item.id] = item.responses[0]
    else:
        answers = _answers(data, policy, out, retry)
        texts = {name: _response(answer) for name, answer in answers.items()}
        lost = [[answers[name]] for name, text in texts.items() if text is None]
    with open_judgments(out, settings, 1, keep_texts=True) as judgments:
        rows, drawn = _judged(data, texts, judge, judgments, retry)
    return _reported(data, settings, rows, out, lost + drawn, "judgments")


def _answers(data: Data, policy: Judge, out: Path, retry: bool) -> dict[str, Drawn]:
    """One answer to each item, by its id; responses.jsonl keeps them."""
    questions = [_asked(item) for item in data.items]
    with open_judgments(out, _settings(data, policy), 1, keep_texts=True, name="responses") as responses:
        responses.ask(policy, questions, f"{data.benchmark}, responses", retry, unit="response")
        return {item.id: responses.of[item.id][0] for item in data.items}


def _judged(
    data: Data, texts: dict[str, str | None], judge: Judge, judgments: Judgments, retry: bool
) -> tuple[list[dict], list[list[Drawn]]]:
    """The chats of all items side by side, a round for each question; one that gets no yes or no ends there.

    So does one without a response to ask about: its first verdict is None.
    """
    chats: dict[str, list[dict]] = {item.id: [] for item in data.items}
    verdicts: dict[str, list[bool | None]] = {item.id: [] for item in data.items}
    drawn: list[list[Drawn]] = []
    open_items: list[Item] = [item for item in data.items if texts[item.id] is not None]
    turn = 0
    while open_items:
        questions = []
        for item in open_items:
            asked = item.row["questions"][turn]
            content = f"{asked}\n" if turn else _opening(item, texts[item.id], asked)
            questions.append(Question(id=f"{item.id}#{turn}", prompt=tuple(chats[item.id]), responses=(content,)))
        judgments.ask(judge, questions, f"infobench, question {turn + 1}", retry)
        turn += 1
        going_on = []
        for item, question in zip(open_items, questions, strict=True):
            (reply,) = judgments.of[question.id]
            drawn.append([reply])
            verdicts[item.id].append(None if reply.score is None else reply.score == 1)
            chats[item.id] += [
                {"role": "user", "content": question.responses[0]},
                {"role": "assistant", "content": response_of(reply.text)},
            ]
            if reply.score is not None and turn < len(item.row["questions"]):
                going_on.append(item)
        open_items = going_on
    rows = [
        {
            "id": item.id, "subset": item.part, "eval": verdicts[item.id] or [None],
            "questions": item.row["questions"], "labels": item.row["labels"],
        }
        for item in data.items
    ]  # fmt: skip
    return rows, drawn


def _response(drawn: Drawn) -> str | None:
    """None where the policy could not be asked or did not reply: no response is not an empty one."""
    return None if drawn.text is None else response_of(drawn.text)


def _opening(item: Item, text: str, question: str) -> str:
    given = f'Input:\n"{item.row["input"]}"\n\n' if item.row["input"] else ""
    return f'{OPENING}\n\n{given}Generated text:\n"{text}"\n\nQuestion:\n{question}\n'


def _asked(item: Item) -> Question:
    prompt = tuple({"role": turn.role, "content": turn.content} for turn in item.prompt)
    return Question(id=item.id, task=item.task, prompt=prompt, responses=(NO_RESPONSE,))


def _settings(data: Data, policy: Judge | None) -> dict:
    known = {"policy": "recorded responses"} if policy is None else fingerprint_of("policy", policy)
    return {"benchmark": data.benchmark, "data": data.digest, "mode": "answers", **known}


def _reported(
    data: Data, settings: dict, rows: list[dict], out: Path, drawn: Sequence[Sequence[Drawn]], noun: str
) -> list[Voted]:
    report = import_module(f"patarm_core.benchmarks.{data.benchmark}").report(rows)
    voted = [Voted("single", 1, rows, report)]
    write_rows(out, voted)
    write_reports(out, data, settings, voted, counts_of(drawn), noun)
    return voted
