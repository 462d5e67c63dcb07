"""Seconds and memory of a GRPO step against n, the judgments of a response: ours on token trees, ours flat, and TRL's.

One small random model, the same pairs, the same lengths (`bench.step_workload`), each contender in a process of its
own, in turns, so that a noisy machine hits all alike. Flat trains on the tree's rollouts. The first turn of each n
warms up, and counts memory; it is not timed. Table 8 of the paper stands beside.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bench import step_checks, step_scaling
from bench.apart import random_decoder
from bench.remote import Remote, one_line
from bench.result_files import write_result
from bench.step_ours import OurStep, Setup
from bench.step_plot import draw
from bench.step_tables import tables
from bench.step_workload import MEANS, SIGMAS, pair_work
from rollout.decoder import DecoderConfig
from rollout.weights import save_decoder
from trainer.config import ModelConfig
from trainer.machine import machine

# 6 M parameters. Its head takes a tenth of a token's products, as that of Qwen3-8B does: with a larger one the update
# would be about the loss tokens, which no layout shares.
MODEL = DecoderConfig(
    vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=7, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=16_384,
)  # fmt: skip
PARTS = ("flat", "trl", "scaling", "invariance")
# Of TRL: how it draws judgments, and rows of a micro-batch.
TRL_SETTINGS = (("generate", 8), ("generate", 16), ("continuous batching", 8))


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    rollouts: tuple[int, ...] = (1, 2, 4, 8, 16)
    steps: int = 3  # timed turns
    pairs: int = 8  # of one process: the paper's 128 pairs on 16 GPUs
    shorten: float = 12.0
    parts: tuple[str, ...] = PARTS  # beside ours on trees

    def __post_init__(self) -> None:
        for name, value in (("--rollouts", min(self.rollouts)), ("--steps", self.steps), ("--pairs", self.pairs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.shorten < float("inf"):
            raise ValueError(f"--shorten must be positive, got {self.shorten}")
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"--only {part}: must be of {', '.join(PARTS)}")

    def work(self, n: int, turn: int, vocab_size: int):
        return pair_work(self.pairs, n, self.shorten, vocab_size, turn)


def run_step_time(options: Options, out: Path | None, model: DecoderConfig = MODEL) -> dict[str, Any]:
    """Prints and returns the result; writes step.json, step.md and, with matplotlib, step.png to `out`."""
    result: dict[str, Any] = {
        "machine": machine(), "trl": _version("trl"), "options": asdict(options), "means": MEANS, "sigmas": SIGMAS,
        "model": asdict(model), "num_parameters": model.num_parameters,
        "records": [],
    }  # fmt: skip

    def report() -> str:
        text = tables(result)
        if out is not None:
            write_result(out, "step", text, result)
        return text

    with tempfile.TemporaryDirectory() as folder:
        save_decoder(random_decoder(model), folder)
        if "invariance" in options.parts:
            result["invariance"] = step_checks.measure(folder, model)
            report()
        work = partial(options.work, vocab_size=model.vocab_size)
        with _contenders(folder, options) as (ours, trl):
            if trl is not None:
                result |= _choose_trl(trl, work(max([n for n in options.rollouts if 1 < n <= 8], default=2), 0))
            for n in options.rollouts:
                trl_setting = result.get("trl_setting") if n > 1 else None  # it refuses a group of one
                result["records"].append(_measure(ours, trl, trl_setting, n, work, options.steps))
                report()  # what is known so far
        if "scaling" in options.parts:
            result["scaling"] = step_scaling.measure(folder, options, model.vocab_size)
    print(report())
    if out is not None:
        draw(result, out / "step.png")
    return result


@contextmanager
def _contenders(folder: str, options: Options) -> Iterator[tuple[dict[str, Remote], Remote | None]]:
    layouts = ["tree", "flat"] if "flat" in options.parts else ["tree"]
    with ExitStack() as opened:
        trl = None
        try:
            if "trl" in options.parts:
                trl = opened.enter_context(closing(Remote(_make_trl, folder)))
        except ImportError as error:
            raise ValueError(f'{one_line(error)}; pip install -e ".[peers]", or --only without trl') from None
        setups = {name: Setup(folder=folder, model=ModelConfig(layout=name)) for name in layouts}
        yield {name: opened.enter_context(closing(Remote(OurStep, setup))) for name, setup in setups.items()}, trl


def _make_trl(folder: str) -> Any:
    from bench.step_trl import TrlStep  # an extra

    return TrlStep(folder)


def _choose_trl(trl: Remote, work) -> dict[str, Any]:
    """Seconds of a step with each setting that divides the work, and the fastest."""
    tries = {}
    num_rows = sum(map(len, work.lengths))
    for how, rows in TRL_SETTINGS:
        if num_rows % min(rows, num_rows) == 0:
            trl.call("prepare", work, how, min(rows, num_rows))
            tries[f"{how}, {rows} rows"] = trl.call("step", work)["step_s"]
    fastest = min(tries, key=tries.__getitem__)
    how, _, rows = fastest.partition(", ")
    return {"trl_tries": tries, "trl_setting": [how, int(rows.split()[0])]}


def _measure(
    ours: dict[str, Remote], trl: Remote | None, trl_setting: Sequence | None, n: int, work, num_steps: int
) -> dict:
    """Of each contender its turns, warm-up first."""
    turns: dict[str, list[dict]] = {name: [] for name in ours}
    if trl is not None and trl_setting is not None:
        turns["trl"] = []
        how, rows = trl_setting
        trl.call("prepare", work(n, 0), how, min(rows, sum(map(len, work(n, 0).lengths))))
    for turn in tqdm(range(num_steps + 1), desc=f"n = {n}", unit="turn"):
        now = work(n, turn)
        is_measured = turn == 0
        order = list(turns) if turn % 2 else list(turns)[::-1]
        drawn = None
        for name in order:
            if name == "trl":
                turns["trl"].append(trl.call("step", now, is_measured))
                continue
            if drawn is None:
                rollout = ours["tree"].call("roll_out", now, turn, is_measured)
                drawn = ours["tree"].call("drawn")
                if "flat" in ours:
                    ours["flat"].call("take", drawn)
            learned = ours[name].call("learn", now, turn, is_measured)
            turns[name].append(rollout | learned | {"step_s": sum_of_phases(rollout | learned)})
    return {"num_rollouts": n, "loss_tokens": sum(map(sum, work(n, 0).lengths))} | {
        name: of_turns(found) for name, found in turns.items()
    }


def sum_of_phases(turn: dict) -> float:
    return sum(turn[name] for name in ("sync_s", "rollout_s", "reward_s", "update_s"))


def of_turns(turns: Sequence[dict]) -> dict[str, Any]:
    """Seconds as lists of the timed turns with their medians; tokens; peaks of the warm-up."""
    first, *timed = turns
    seconds = {name: [turn[name] for turn in timed] for name in first if name.endswith("_s")}
    return (
        {name: value for name, value in timed[-1].items() if not name.endswith(("_s", "_peak"))}
        | {name: value for name, value in first.items() if name.endswith("_peak")}
        | {name: median(values) for name, values in seconds.items()}
        | {"turns": seconds}
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
