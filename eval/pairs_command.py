"""`eval/main.py pairs`: a judge directory and a file of pairs in, a table out."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.contexts import ContextBuilder, PromptConfig, load_pairs, load_rubrics
from eval.pair_accuracy import JudgedPair, judge_pairs, summary
from eval.tables import accuracy_table, task_table
from rollout.engine import Engine


def run_pairs(options: argparse.Namespace) -> dict:
    """Prints the tables and returns the summary.

    With the seed, sampling settings and prompt settings of a training run, the numbers of its report come out again: a
    pair's judgments depend on (seed, source, id) and on the weights alone.
    """
    try:
        votes = [int(n) for n in options.votes.split(",")]
    except ValueError:
        raise ValueError(
            f"--votes {options.votes}: whole numbers separated by commas are wanted, such as 1,8"
        ) from None
    if min(votes) < 1:
        raise ValueError(f"--votes {options.votes}: every number must be at least 1")
    book = load_rubrics(options.rubrics_file)
    pairs = load_pairs(options.data, book)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = Engine.from_pretrained(options.model, dtype, device, options.max_rows)
    prompt = PromptConfig(
        rubrics=options.rubrics, template=options.template, rubrics_file=options.rubrics_file,
        max_context_tokens=options.max_context_tokens,
    )  # fmt: skip
    judged = judge_pairs(
        engine, ContextBuilder(engine.tokenizer, prompt, book), pairs, max(votes), options.seed,
        options.max_completion_tokens, options.temperature, progress="judging",
    )  # fmt: skip
    result = summary(judged, votes)
    if options.out:
        write_judgments(Path(options.out), judged)
    name = Path(options.model).name
    print(accuracy_table({name: result}), task_table({name: result}), sep="\n\n")
    return result


def write_judgments(file: Path, judged: Sequence[JudgedPair]) -> None:
    """One line per judgment: source, id, side, text, score, error. The file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".partial")
    with open(aside, "w", encoding="utf-8") as out:
        for item in judged:
            for side, texts, judgments in (
                ("chosen", item.chosen_texts, item.chosen),
                ("rejected", item.rejected_texts, item.rejected),
            ):
                for text, judgment in zip(texts, judgments, strict=True):
                    score = None if judgment.score is None else float(judgment.score)
                    record = {"source": item.pair.source, "id": item.pair.id, "side": side, "judgment": text}
                    out.write(json.dumps(record | {"score": score, "error": judgment.error}, ensure_ascii=False) + "\n")
    os.replace(aside, file)
