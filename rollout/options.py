"""The options of a door that name a judge and say how it is asked, and the judge that they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollout.judge import Judge


def add_form_options(parser: argparse._ActionsContainer) -> None:
    """How a judge of PaTaRM's is asked."""
    parser.add_argument(
        "--rubrics", default="adaptive", choices=("adaptive", "primary", "generated"),
        help="adaptive: those given and those that the judge writes; primary or generated: one kind alone",
    )  # fmt: skip
    parser.add_argument(
        "--template", default="full", choices=("full", "bare"), help="bare: without instructions, as in the quickstart"
    )
    parser.add_argument("--rubrics-file", default="", help="primary rubrics; default: the paper's")


def add_engine_options(parser: argparse._ActionsContainer, max_rows: int = 256) -> None:
    parser.add_argument(
        "--max-context-tokens", type=int, default=8192, help="a longer context is a mistake (default: 8192)"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (default: float32)"
    )
    parser.add_argument("--max-rows", type=int, default=max_rows, help=f"decoded side by side (default: {max_rows})")


def add_seed_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a Hugging Face directory, such as runs/quickstart/models/grpo")
    parser.add_argument("--votes", type=int, default=1, help="judgments per response")
    add_form_options(parser)
    parser.add_argument(
        "--max-completion-tokens",
        type=int,
        default=4096,
        help="of a judgment; fewer where the context leaves less room",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0: greedy (default: 1)")
    add_seed_option(parser)
    parser.add_argument("--well-formed", action="store_true", help="draw only tokens that keep a judgment well-formed")
    add_engine_options(parser)


def load_judge(options: argparse.Namespace) -> Judge:
    for name in ("votes", "max_completion_tokens"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    import torch

    from rollout.engine import EngineConfig
    from rollout.judge import Judge

    return Judge.from_pretrained(
        options.model, rubrics=options.rubrics, template=options.template, rubrics_file=options.rubrics_file,
        max_context_tokens=options.max_context_tokens, well_formed=options.well_formed,
        dtype=getattr(torch, options.dtype), engine_config=EngineConfig(max_rows=options.max_rows),
        num_votes=options.votes, max_completion_tokens=options.max_completion_tokens,
        temperature=options.temperature, seed=options.seed,
    )  # fmt: skip


def judgment_settings(options: argparse.Namespace) -> dict:
    """All that a judgment depends on besides its question, JSON-ready; of the weights, their files' sizes and times."""
    from rollout.contexts import read_text

    names = (
        "votes", "rubrics", "template", "max_context_tokens", "max_completion_tokens", "temperature", "seed",
        "well_formed", "dtype",
    )  # fmt: skip
    return {
        **{name: getattr(options, name) for name in names},
        "rubrics_file": options.rubrics_file and read_text(options.rubrics_file),
        "model": model_files(options.model),
    }


def model_files(path: str) -> list[list]:
    """[name, size, time] of every file of a model's directory: what stands for its weights."""
    from pathlib import Path

    files = [file for file in sorted(Path(path).glob("*")) if file.is_file()]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
