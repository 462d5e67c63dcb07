"""Kills a tiny run at seeded random moments, resumes it, and compares what it leaves with what an unbroken one left.

Half of the moments are drawn over the run's whole time; the other half over its phases in turn, each phase over its
occurrences and its length, so that short ones are hit too; the ends of epochs count as a phase. Imports come before the
clock starts (bench/fault_child.py).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from bench.result_files import write_result
from rollout.text_files import read_records
from trainer.machine import machine

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "trainer" / "recipes" / "quickstart.toml"
_RUBRICS, _RUBRICS_FILE = "prompt.rubrics_file", Path("patarm_core", "embedded", "rubrics.toml")
# Both stages with checkpoints, dev measurements and an end of an epoch within; GRPO saves at every boundary.
TINY = {
    "data.embedded.num_sft_pairs": 48, "data.embedded.num_rl_pairs": 12, "data.embedded.num_dev_pairs": 4,
    "data.embedded.num_held_out_pairs": 6, "model.small.hidden_size": 32, "model.small.intermediate_size": 64,
    "model.small.num_hidden_layers": 2, "model.small.num_attention_heads": 2, "model.small.num_key_value_heads": 1,
    "model.small.head_dim": 16, "rollout.num_rollouts": 4, "rollout.max_completion_tokens": 32, "sft.steps": 5,
    "sft.rows_per_step": 16, "sft.dev_every": 2, "sft.checkpoint_every": 2, "grpo.steps": 0, "grpo.epochs": 2,
    "grpo.pairs_per_step": 4, "grpo.inner_epochs": 2, "grpo.dev_every": 2, "grpo.checkpoint_every": 1,
    "eval.num_judgments": 2, "eval.votes": [1, 2], "eval.num_dev_judgments": 2,
    _RUBRICS: str(ROOT / _RUBRICS_FILE),
}  # fmt: skip
ANY = "any moment"
EPOCH_END = "an epoch's end"  # from when its last step is logged to the next rollout


@dataclass(frozen=True, slots=True)
class Kill:
    """One killed and resumed run. Equal in every field of the metrics but times, and in every byte of the models."""

    aim: str  # a phase, EPOCH_END or ANY
    at_s: float  # of its time when it died
    phase: str  # in which it was, innermost; "+ writing" if a checkpoint was being written behind it
    left_half: bool  # a checkpoint, half-written
    differences: tuple[str, ...]  # from the unbroken run, once resumed to its end

    @property
    def is_exact(self) -> bool:
        return not self.differences


class Nursery:
    """A process that has imported the trainer and forks runs."""

    def __enter__(self) -> Nursery:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.fault_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def run(self, arguments: list[str], folder: Path, kill: dict | None = None) -> int:
        """Exit status of a run; `kill` as bench/fault_child.py has it."""
        folder.mkdir(parents=True)
        self._process.stdin.write(json.dumps({"arguments": arguments, "folder": str(folder), "kill": kill}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks runs has died")
        return json.loads(line)["status"]


def run_faults(num_kills: int, seed: int, out: Path | None) -> list[Kill]:
    """Prints a table; writes faults.json and faults.md to `out`. RuntimeError if a run was not resumed exactly."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary, Nursery() as nursery:
        folder = Path(temporary)
        if nursery.run(_arguments(folder / "unbroken"), folder / "unbroken-notes") != 0:
            raise RuntimeError(f"the unbroken run failed: {_last_line(folder / 'unbroken-notes' / 'log')}")
        spans = timeline(folder / "unbroken-notes" / "notes")
        aims = _aims(sorted(spans), num_kills, generator)
        kills = [_kill(i, aim, spans, generator, folder, nursery) for i, aim in enumerate(tqdm(aims, desc="kills"))]
    total_s = spans["the run"][0][1]
    text = table(kills, total_s, seed)
    print(text)
    if out is not None:
        record = {
            "machine": machine(),
            "seed": seed,
            "unbroken_s": total_s,
            "recipe": TINY | {_RUBRICS: str(_RUBRICS_FILE)},
        }
        record["kills"] = [asdict(kill) for kill in kills]
        write_result(out, "faults", text, record)
    if wrong := [kill for kill in kills if not kill.is_exact]:
        raise RuntimeError(f"{len(wrong)} of {len(kills)} runs were not resumed exactly; the first: {wrong[0]}")
    return kills


def _kill(
    number: int, aim: str, spans: dict[str, list[tuple[float, float]]], generator: random.Random, folder: Path,
    nursery: Nursery,
) -> Kill:  # fmt: skip
    status = 0
    while status == 0:  # a kill that comes when all is done is none
        name, number = f"{number}", number + 1000
        out, notes = folder / f"run-{name}", folder / f"notes-{name}"
        status = nursery.run(_arguments(out), notes, _moment(aim, spans, generator))
    if status != -signal.SIGKILL:
        raise RuntimeError(f"a run ended by itself with status {status}: {_last_line(notes / 'log')}")
    at_s, phase = last_moment(notes / "notes")
    left_half = any(out.glob("checkpoints/*/step-*.partial"))
    has_begun = (out / "recipe.toml").is_file()
    again = folder / f"again-{name}"
    status = nursery.run([*_arguments(out), *(["resume=true"] if has_begun else [])], again)
    if status != 0:
        found = [f"exit status {status}: {_last_line(again / 'log')}"]
    else:
        found = differences(out, folder / "unbroken")
    return Kill(aim, at_s, phase, left_half, tuple(found))


def _aims(phases: list[str], num_kills: int, generator: random.Random) -> list[str]:
    """Every other one a phase, all phases in turn."""
    phases = [phase for phase in phases if phase not in ("the run", "step")] + [EPOCH_END]  # the two only hold others
    generator.shuffle(phases)
    return [ANY if i % 2 else phases[i // 2 % len(phases)] for i in range(num_kills)]


def _moment(aim: str, spans: dict[str, list[tuple[float, float]]], generator: random.Random) -> dict:
    """When to kill, by the times of the unbroken run."""
    run_s = spans["the run"][0][1]
    if aim == ANY:
        return {"phase": None, "occurrence": 0, "after_s": generator.uniform(0, run_s)}
    if aim == EPOCH_END:
        steps_per_epoch = TINY["data.embedded.num_rl_pairs"] // TINY["grpo.pairs_per_step"]
        last_step = TINY["sft.steps"] + steps_per_epoch * generator.randint(1, TINY["grpo.epochs"])
        phase, occurrence = "log", last_step - 1
        start = spans[phase][occurrence][0]
        end = min([*(begin for begin, _ in spans["rollout"] if begin > start), run_s])
    else:
        phase, occurrence = aim, generator.randrange(len(spans[aim]))
        start, end = spans[phase][occurrence]
    return {"phase": phase, "occurrence": occurrence + 1, "after_s": generator.uniform(0, end - start)}


def _arguments(out: Path) -> list[str]:
    settings = TINY | {"out": str(out)}
    return [str(RECIPE), *(f"{key}={json.dumps(value)}" for key, value in settings.items())]


def timeline(notes: Path) -> dict[str, list[tuple[float, float]]]:
    """(begin, end) in seconds of every occurrence of each phase."""
    spans, open_since = defaultdict(list), {}
    for line in notes.read_text().splitlines():
        seconds, _, what = line.partition(" ")
        if what[0] == "+":
            open_since[what[1:]] = float(seconds)
        else:
            spans[what[1:]].append((open_since.pop(what[1:]), float(seconds)))
    return dict(spans)


def last_moment(notes: Path) -> tuple[float, str]:
    """(seconds of the last note, what was going on then)."""
    seconds, doing = 0.0, []
    for line in notes.read_text().splitlines() if notes.is_file() else []:
        text, _, what = line.partition(" ")
        seconds = float(text)
        if what[0] == "+":
            doing.append(what[1:])
        else:
            doing.remove(what[1:])
    is_writing = "writing" in doing
    doing = [phase for phase in doing if phase != "writing"]
    return seconds, (doing[-1] if doing else "starting") + (" + writing" if is_writing else "")


def differences(out: Path, expected: Path) -> list[str]:
    """Names of what is not the same in two run folders."""
    found = []
    ours, theirs = ([_without_times(row) for row in read_records(x / "metrics.jsonl")] for x in (out, expected))
    if ours != theirs:
        found.append("metrics.jsonl")
    held_out = [json.loads((x / "report.json").read_text())["held_out"] for x in (out, expected)]
    if held_out[0] != held_out[1]:
        found.append("report.json")
    ours, theirs = ({str(file.relative_to(x)): file.read_bytes() for file in _results(x)} for x in (out, expected))
    return found + sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _without_times(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "tokens_per_s" and not key.endswith("_s")}


def _results(folder: Path) -> list[Path]:
    """Files that hold no times: models, judgments, samples, warnings, data."""
    found = [file for part in ("models", "judgments", "data") for file in (folder / part).rglob("*") if file.is_file()]
    return found + [file for name in ("samples.jsonl", "warnings.jsonl") if (file := folder / name).is_file()]


def table(kills: list[Kill], total_s: float, seed: int) -> str:
    of_phase = defaultdict(list)
    for kill in kills:
        of_phase[kill.phase].append(kill)
    rows = [(phase, len(of_phase[phase]), sum(k.is_exact for k in of_phase[phase])) for phase in sorted(of_phase)]
    rows.append(("all", len(kills), sum(kill.is_exact for kill in kills)))
    aimed = [kill for kill in kills if kill.aim != ANY]
    lines = [
        f"Runs of {total_s:.1f} s (imports not counted) killed by SIGKILL, seed {seed}; CPU, float32, one process.",
        "Exact: resumed to the end, its metrics but times, samples, judgments and weights are those of the unbroken",
        "run, bit for bit. `+ writing`: a checkpoint was being written behind that phase. `the run`: between others.",
        f"{len(kills) - len(aimed)} at any moment, {len(aimed)} aimed at a phase, of which "
        f"{sum(kill.aim == EPOCH_END for kill in aimed)} at {EPOCH_END}.",
        f"Half-written checkpoints left behind: {sum(kill.left_half for kill in kills)}.",
        "",
        "| killed in | kills | exact resumes |",
        "|---|---:|---:|",
    ]
    return "\n".join(lines + [f"| {phase} | {count} | {exact} |" for phase, count, exact in rows])


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "no output")
