"""`eval/main.py pairs`: a judge directory and a file of pairs in, a table out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.pair_accuracy import Judged, judge_pairs, summary
from eval.run_command import read_votes
from eval.tables import accuracy_table, task_table
from rollout.contexts import ContextBuilder, PromptConfig, load_pairs, load_rubrics
from rollout.engine import Engine, EngineConfig
from rollout.text_files import record_line, write_text


def run_pairs(options: argparse.Namespace) -> dict:
    """Prints the tables and returns the summary.

    With the seed, sampling settings and prompt settings of a training run, the numbers of its report come out again: a
    pair's judgments depend on (seed, source, id) and on the weights alone.
    """
    votes = read_votes(options.votes)
    book = load_rubrics(options.rubrics_file)
    pairs = load_pairs(options.data, book)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = Engine.from_pretrained(options.model, dtype, device, EngineConfig(max_rows=options.max_rows))
    prompt = PromptConfig(
        rubrics=options.rubrics, template=options.template, rubrics_file=options.rubrics_file,
        max_context_tokens=options.max_context_tokens,
    )  # fmt: skip
    out = Path(options.out) if options.out else None
    if out is not None and out.exists():
        raise ValueError(f"--out {out}: exists already; name a new file")
    if out is not None:
        _aside(out).touch()  # a path that cannot be written is told now, not after the judging
    try:
        judged = judge_pairs(
            engine, ContextBuilder(engine.tokenizer, prompt, book), pairs, max(votes), options.seed,
            options.max_completion_tokens, options.temperature, progress="judging", mode=options.mode,
        )  # fmt: skip
        if out is not None:
            write_judgments(out, judged)
    finally:
        if out is not None:
            _aside(out).unlink(missing_ok=True)
    result = summary(judged, votes)
    name = Path(options.model).name
    print(accuracy_table({name: result}), task_table({name: result}), sep="\n\n")
    return result


def write_judgments(file: Path, judged: Sequence[Judged]) -> None:
    """One line per judgment: source, id, side, text, score (lenient reader), error (strict parser).

    A pairwise one has the side that it prefers as `choice`, and whether it read them swapped. The file appears whole or
    not at all.
    """
    write_text(file, "".join(record_line(record) for item in judged for record in item.records()))


def _aside(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.with_name(file.name + ".partial")
