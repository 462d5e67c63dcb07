"""The judge of a stage, and its judgments, kept as they come: a run that is killed while it judges goes on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from eval.benchmark_run import fingerprint_of
from eval.judges.form import Form, Sampling
from eval.judges.judge import Drawn, Judge, Mode, Question
from eval.judges.reading import Reading, unread
from eval.judges.spec import add_judge_options, open_judge, open_local, open_named_endpoint
from eval.judgments import open_judgments
from patarm_core.curation.classify import classify_prompt, read_task
from trainer.curation.config import JudgeConfig
from trainer.curation.embedded_judge import EmbeddedJudge
from trainer.curation.recorded import RecordedJudge
from trainer.curation.stage_files import Row, question_id

SIDES = ("chosen", "rejected")


def open_stage_judge(config: JudgeConfig, mode: Mode, seed: int, key: str) -> Judge:
    """
    Args:
        key: of the recipe, for errors.

    Raises:
        ValueError: one line; what the recipe names cannot be opened.
    """
    try:
        if config.kind == "recorded":
            return RecordedJudge(Path(config.recorded), mode)
        if config.kind == "embedded":
            return EmbeddedJudge(mode, seed)
        return open_judge(_options(config, mode, seed))
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from None


def open_classifier(config: JudgeConfig, tasks: Sequence[str], seed: int) -> Judge:
    """Asks of which task a prompt is; a score of i says that it is the i-th. Errors as in `open_stage_judge`."""
    if config.kind == "recorded":
        return open_stage_judge(config, "pointwise", seed, "classify.judge")
    form = Form(
        name="classify", asks={"pointwise": partial(_ask_task, tasks)}, reads={"pointwise": partial(_read_task, tasks)},
    )  # fmt: skip
    sampling = Sampling(temperature=config.temperature, max_tokens=config.max_completion_tokens)
    try:
        options = _options(config, "pointwise", seed)
        if config.kind == "endpoint":
            return open_named_endpoint(form, "pointwise", sampling, options)
        return open_local(form, "pointwise", sampling, options, config.model)
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(f"classify.judge: {error}") from None


def _ask_task(tasks: Sequence[str], prompt, responses, task: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": classify_prompt(prompt, tasks)}]


def _read_task(tasks: Sequence[str], text: str) -> Reading:
    task = read_task(text, tasks)
    return (
        unread("no <answer> with the name of a task at its end") if task is None else Reading(score=tasks.index(task))
    )


def _options(config: JudgeConfig, mode: Mode, seed: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_judge_options(parser)
    where = ["--model", config.model]
    if config.kind == "endpoint":
        where = ["--endpoint", config.url, "--endpoint-model", config.model, "--api-key-env", config.api_key_env]
    options = [*where, "--judge", config.judge, "--rubrics", config.prompt.rubrics]
    options += ["--template", config.prompt.template, "--rubrics-file", config.prompt.rubrics_file]
    options += ["--max-context-tokens", str(config.prompt.max_context_tokens), "--temperature", str(config.temperature)]
    options += ["--max-completion-tokens", str(config.max_completion_tokens), "--seed", str(seed)]
    options += ["--concurrency", str(config.concurrency), "--dtype", config.dtype, "--max-rows", str(config.max_rows)]
    options += ["--well-formed"] if config.well_formed else []
    return parser.parse_args(options + ([] if config.judge == "scalar" else ["--mode", mode]))


def side_questions(row: Row) -> list[Question]:
    """One about each response."""
    known = {"task": row["task"], "prompt": _prompt(row)}
    return [Question(id=_id(row, side), responses=(row[side],), **known) for side in SIDES]


def pair_question(row: Row) -> Question:
    """A is the chosen response; the judge draws which it reads first."""
    return Question(
        id=_id(row, "pair"), task=row["task"], prompt=_prompt(row), responses=(row["chosen"], row["rejected"])
    )


def task_question(row: Row) -> Question:
    return Question(id=_id(row, "task"), prompt=_prompt(row), responses=("",))


def _id(row: Row, about: str) -> str:
    return question_id(row["source"], row["id"], about)


def _prompt(row: Row) -> object:
    return row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])


def ask_all(
    folder: Path, stage: str, judge: Judge, questions: Sequence[Question], votes: int, keep_texts: bool = True
) -> list[list[Drawn]]:
    """The judgments of every question, in order, those from before an interruption among them.

    What got no reply then, as of an endpoint that was down, is asked again.
    """
    settings = fingerprint_of("judge", judge)
    with open_judgments(folder / "judging", settings, votes, keep_texts, stage) as kept:
        kept.ask(judge, questions, stage, retry=True)
        return [[_in_unicode(one) for one in kept.of[question.id][:votes]] for question in questions]


def _in_unicode(drawn: Drawn) -> Drawn:
    """Half of a surrogate pair, which an endpoint may send, has no UTF-8: it becomes a question mark."""
    return replace(drawn, text=drawn.text and drawn.text.encode(errors="replace").decode())
