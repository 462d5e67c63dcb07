"""`eval/main.py rm_bench`, … `infobench`, `ifeval`: local files and a judge or a policy in, a folder out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.data.items import Data
from rollout.options import add_engine_options, add_seed_option

if TYPE_CHECKING:
    from eval.judges.form import Form
    from eval.judges.judge import Judge

JUDGED = {
    "rm_bench": "RM-Bench: chosen and rejected responses in three styles each",
    "rewardbench": "RewardBench: pairs of 23 subsets in four sections",
    "rewardbench2": "RewardBench 2: best of four, and ties",
    "rmb": "RMB: pairs, and lists of one best response, for helpfulness and harmlessness",
    "llmbar": "LLMBar: pairs of outputs for one instruction",
    "hep": "HumanEvalPack as RewardBench's hep subsets: right against buggy code",
    "judgebench": "JudgeBench: pairs of hard answers, of which one is right",
}


def add_run_commands(commands: argparse._SubParsersAction) -> None:
    from eval.judges.spec import add_endpoint_options, add_judge_options

    for name, about in JUDGED.items():
        command = commands.add_parser(name, help=about)
        _add_common(command)
        command.add_argument(
            "--votes", default="1,8", help="numbers of judgments to vote with; the largest is drawn of each question"
        )
        add_judge_options(command)
        command.set_defaults(run=_run_judged)
    infobench = commands.add_parser("infobench", help="InFoBench: a model answers, a judge answers questions about it")
    _add_common(infobench)
    infobench.add_argument(
        "--model", default="", help="a Hugging Face directory that answers; default: recorded outputs"
    )
    infobench.add_argument("--judge-model", default="", help="a Hugging Face directory that answers yes or no")
    infobench.add_argument("--endpoint", default="", help="or an OpenAI-compatible endpoint that does")
    infobench.set_defaults(run=_run_infobench)
    ifeval = commands.add_parser("ifeval", help="IFEval: a model answers, and 25 rules judge")
    _add_common(ifeval)
    ifeval.add_argument("--model", default="", help="a Hugging Face directory that answers")
    ifeval.add_argument("--endpoint", default="", help="or an OpenAI-compatible endpoint that does")
    ifeval.set_defaults(run=_run_ifeval)
    for command in (infobench, ifeval):
        command.add_argument("--max-completion-tokens", type=int, default=2048, help="of a response")
        command.add_argument("--temperature", type=float, default=0.0, help="of responses; 0: greedy, as published")
        add_seed_option(command)
        add_engine_options(command)
        add_endpoint_options(command)
        command.set_defaults(order="drawn")  # one text is read at a time


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", required=True, type=Path, help="file or folder, in the layout it is published in")
    command.add_argument("--out", required=True, type=Path, help="folder of the run; one that was interrupted goes on")
    command.add_argument("--first", type=int, default=0, help="only the first so many items of every part")
    command.add_argument("--retry", action="store_true", help="ask again what got no reply")


def _run_judged(options: argparse.Namespace) -> None:
    from eval.benchmark_run import run_benchmark
    from eval.benchmarks import BENCHMARKS
    from eval.judges.spec import open_judge

    votes = read_votes(options.votes)
    data = _data(options, BENCHMARKS[options.command].read)
    if BENCHMARKS[options.command].has_both_orders and options.order == "drawn":
        options.order = "given"  # drawn, the two games of a pair could be one game twice
    run_benchmark(options.command, data, open_judge(options), votes, options.out, options.retry)
    _show(options.out)


def _run_infobench(options: argparse.Namespace) -> None:
    from eval.answer_forms import yes_no_form
    from eval.answer_run import run_infobench
    from eval.data.answered import read_infobench

    data = _data(options, read_infobench)
    if bool(options.judge_model) == bool(options.endpoint):
        raise ValueError("name who answers yes or no: --judge-model DIR, or --endpoint URL with --endpoint-model NAME")
    policy = _opened(_policy_form(options), options, options.model) if options.model else None
    judge = _opened(yes_no_form(), options, options.judge_model)
    run_infobench(data, policy, judge, options.out, options.retry)
    _show(options.out)


def _run_ifeval(options: argparse.Namespace) -> None:
    from eval.answer_run import run_ifeval
    from eval.data.answered import read_ifeval

    data = _data(options, read_ifeval)
    if bool(options.model) == bool(options.endpoint):
        raise ValueError("name who answers: --model DIR, or --endpoint URL with --endpoint-model NAME")
    run_ifeval(data, _opened(_policy_form(options), options, options.model), options.out, options.retry)
    _show(options.out)


def _policy_form(options: argparse.Namespace) -> Form:
    from eval.answer_forms import policy_form

    form = policy_form()
    sampling = replace(form.sampling, temperature=options.temperature, max_tokens=options.max_completion_tokens)
    return replace(form, sampling=sampling)


def _opened(form: Form, options: argparse.Namespace, model: str) -> Judge:
    """On our engine, or without a model at the endpoint that the options name."""
    from eval.judges.spec import open_local, open_named_endpoint

    if model:
        return open_local(form, "pointwise", form.sampling, options, model)
    return open_named_endpoint(form, "pointwise", form.sampling, options)


def read_votes(text: str) -> list[int]:
    try:
        votes = [int(n) for n in text.split(",")]
    except ValueError:
        raise ValueError(f"--votes {text}: whole numbers separated by commas are wanted, such as 1,8") from None
    if min(votes) < 1:
        raise ValueError(f"--votes {text}: every number must be at least 1")
    return votes


def _data(options: argparse.Namespace, read: Callable[[Path], Data]) -> Data:
    """What is read of the files; what is missing is told before anything is asked."""
    if options.first < 0:
        raise ValueError(f"--first must be at least 1, got {options.first}")
    data = read(options.data)
    data = data.first(options.first) if options.first else data
    for warning in data.warnings:
        print("warning:", warning, file=sys.stderr, flush=True)
    return data


def _show(out: Path) -> None:
    print((out / "report.md").read_text(encoding="utf-8"), end="")
