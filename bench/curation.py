"""The data pipeline on real data: counts, rows per second, kills and planted benchmark prompts.

RMB's pairs and GSM8K's right and wrong solutions, with scores that are drawn from a seed (there are none recorded of
them; they exercise the arithmetic and say nothing of a judge); and, with --judge, a local model that scores GSM8K's
solutions.

Prometheus's mt_bench_eval has recorded scores, three by GPT-4 of each of four models' answers, and makes no pairs: each
model was asked in a conversation that holds its own first answer, so that of 80 items (`idx`) two models share a prompt
in 2, and nobody but the judge says which answer is better. Its hhh_alignment_eval has pairs and no scores.
"""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from bench.result_files import write_result
from eval.benchmarks import BENCHMARKS
from eval.tables import markdown
from patarm_core.curation.sources import GSM8K_MODELS
from rollout.contexts import read_text
from rollout.text_files import read_records, write_text
from trainer.machine import machine

ROOT = Path(__file__).parent.parent
STAGES = ("read", "classify", "decontaminate", "rollouts", "select", "judgments", "margin", "choices", "split")
NO_RESULT = ("timings.jsonl", "judging", "recipe.toml")  # hold times, or say resume = true


def run_curation(data: Path, judge: str, num_kill_pairs: int, num_judged: int, out: Path | None) -> None:
    """Prints the report; RuntimeError if a resumed run differs or a planted prompt is missed.

    Args:
        data: folder with rmb, gsm8k and hep as they are published.
        judge: Hugging Face directory of a PaTaRM judge, or nothing.
        num_kill_pairs: of the runs that are killed.
        num_judged: GSM8K questions that the judge is asked about.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recorded, parts = {}, []
        recorded["drawn"] = _whole(data, folder / "whole", parts)
        recorded["kills"] = _kills(data, folder / "kills", num_kill_pairs, parts)
        if judge:
            recorded["judge"] = _judged(data, folder / "judged", judge, num_judged, parts)
    text = "\n\n".join(parts)
    print(text)
    if out is not None:
        write_result(out, "curation", text, {"machine": machine(), **recorded})
    if wrong := [kill for kill in recorded["kills"] if not kill["is_equal"]]:
        raise RuntimeError(f"{len(wrong)} resumed runs differ, the first killed in {wrong[0]['stage']}")
    if recorded["drawn"]["planted"] != recorded["drawn"]["caught"]:
        raise RuntimeError(
            f"{recorded['drawn']['caught']} of {recorded['drawn']['planted']} planted prompts were caught"
        )


def _whole(data: Path, folder: Path, parts: list[str]) -> dict:
    planted = _plant(data, folder)
    settings = _drawn_settings(data, folder, None) + [f'contamination.against.hep="{data / "hep"}"']
    run = _run(folder / "run", [*settings, f'sources.planted="plain:{planted}"'])
    report, timings = _report(run), read_records(run / "timings.jsonl")
    contaminated = [row for row in read_records(run / "quarantine.jsonl") if row["reason"] == "contaminated"]
    caught = sum(row["source"] == "planted" for row in contaminated)
    num_planted = len(read_records(planted))
    others = len(contaminated) - caught
    rates = [["stage", "kept", "dropped", "s", "rows/s"]]
    for stage in timings:
        num = stage["kept"] + stage["dropped"]
        rates.append([stage["stage"], *(f"{stage[key]:,}" for key in ("kept", "dropped")), f"{stage['seconds']:.2f}",
                      f"{num / max(stage['seconds'], 1e-3):,.0f}"])  # fmt: skip
    parts += [
        "RMB and GSM8K with drawn scores (8 rollouts, 1 sample for SFT, 1 choice), HumanEvalPack planted:",
        markdown(rates), _table_of(run),
        f"Planted: the {num_planted:,} instructions of HumanEvalPack in turn as is, in capitals, with other white "
        f"space, without punctuation, inside another request; caught {caught:,}. Of all other pairs {others}.",
    ]  # fmt: skip
    return {"timings": timings, "report": report, "planted": num_planted, "caught": caught, "other": others}


def _plant(data: Path, folder: Path) -> Path:
    """One pair for each prompt of HumanEvalPack, disguised in one of five ways."""
    ways = (
        lambda text: text, str.upper, lambda text: "\n ".join(text.split()),
        lambda text: "".join(c if c.isalnum() or c.isspace() else " " for c in text),
        lambda text: f"Here is what I need. {text}\nAnswer in English.",
    )  # fmt: skip
    rows = [
        {"prompt": ways[number % 5](item.prompt[0].content), "chosen": f"a{number}", "rejected": "b", "task": "code"}
        for number, item in enumerate(BENCHMARKS["hep"].read(data / "hep").items)
    ]
    return _write(folder / "planted.jsonl", rows)


def _drawn_settings(data: Path, folder: Path, first: int | None) -> list[str]:
    """Sources, and a file of judgments drawn for every pair that may come of them."""
    with gzip.open(data / "rmb" / "pairs_4000.jsonl.gz", "rt", encoding="utf-8") as file:
        rmb = file.read().splitlines()[:first]
    gsm8k = read_text(data / "gsm8k" / "example_model_solutions.jsonl").splitlines()[:first]
    write_text(folder / "rmb.jsonl", "\n".join(rmb) + "\n")
    write_text(folder / "gsm8k.jsonl", "\n".join(gsm8k) + "\n")
    names = [("rmb", json.loads(line)["id"]) for line in rmb]
    for number, line in enumerate(gsm8k, start=1):
        is_right = {model: json.loads(line)[model]["is_correct"] for model in GSM8K_MODELS}
        names += [("gsm8k", f"{number}-{good}-{bad}") for good in GSM8K_MODELS for bad in GSM8K_MODELS
                  if is_right[good] and not is_right[bad]]  # fmt: skip
    rng, rows = Random(0), []
    for source, id in names:
        gap = rng.gauss(1.5, 2)
        sides = {side: [_judgment(rng.gauss(6 + sign * gap / 2, 1.5)) for _ in range(8)]
                 for side, sign in (("chosen", 1), ("rejected", -1))}  # fmt: skip
        a = rng.choice(("chosen", "rejected"))
        right = "A" if a == "chosen" else "B"
        choice = right if rng.random() < 0.9 else "AB".replace(right, "")
        rows.append({"source": source, "id": id, **sides, "a": a, "choices": [_judgment(choice)]})
    file = _write(folder / "judgments.jsonl", rows)
    sources = [f'sources.{name}="{name}:{folder / name}.jsonl"' for name in ("rmb", "gsm8k")]
    return [*sources, *_recorded(file), "split.held_out=0.05"]


def _judgment(answer: float | str) -> str:
    answer = answer if isinstance(answer, str) else f"{min(max(round(2 * answer), 0), 20) / 2}"
    return f"<think>drawn</think><generate_rubrics>none</generate_rubrics><eval>drawn</eval><answer>{answer}</answer>"


def _recorded(file: Path, keys: Sequence[str] = ("rollouts", "sft", "pairwise")) -> list[str]:
    return [f'{key}.judge={{kind="recorded", recorded="{file}"}}' for key in keys]


def _kills(data: Path, folder: Path, num_pairs: int, parts: list[str]) -> list[dict]:
    """Kills a run as soon as the stage before each one has left its file."""
    settings = _drawn_settings(data, folder, num_pairs)
    expected = _results(_run(folder / "unbroken", settings))
    kills = []
    for number, stage in enumerate(STAGES, start=1):
        run = folder / f"run-{number}"
        before = run / "stages" / f"{number - 1}-{STAGES[number - 2]}.jsonl" if number > 1 else run / "recipe.toml"
        with subprocess.Popen(_command(run, settings), **_QUIET) as process:
            while process.poll() is None and not before.is_file():
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        done = sum(1 for file in (run / "stages").glob("*.jsonl") if "dropped" not in file.name)
        in_stage = STAGES[done] if done < len(STAGES) else "outputs"
        _run(run, [*settings, "resume=true"])
        is_equal = _results(run) == expected
        kills.append({"aim": stage, "stage": in_stage, "status": process.returncode, "is_equal": is_equal})
    rows = [["aimed at", "killed in", "same bytes after resuming"]]
    rows += [[kill["aim"], kill["stage"], "yes" if kill["is_equal"] else "no"] for kill in kills]
    parts += [f"Killed by SIGKILL ({num_pairs} rows of each source), then resumed:", markdown(rows)]
    return kills


def _judged(data: Path, folder: Path, judge: str, num_questions: int, parts: list[str]) -> dict:
    gsm8k = read_text(data / "gsm8k" / "example_model_solutions.jsonl").splitlines()[:num_questions]
    write_text(folder / "gsm8k.jsonl", "\n".join(gsm8k) + "\n")
    prompt = '{template="bare", max_context_tokens=900}'
    table = f'{{model="{Path(judge).resolve()}", max_completion_tokens=80, well_formed=true, prompt={prompt}}}'
    settings = [f"{key}.judge={table}" for key in ("rollouts", "sft", "pairwise")]
    run = _run(folder / "run", [f'sources.gsm8k="gsm8k:{folder / "gsm8k.jsonl"}"', *settings])
    timings = {stage["stage"]: stage for stage in read_records(run / "timings.jsonl")}
    num, seconds = 16 * timings["rollouts"]["kept"], timings["rollouts"]["seconds"]
    parts += [
        f"A local model of 0.7 M parameters (the quickstart's; it knows no real text) on {num_questions} questions of "
        f"GSM8K: {num} rollouts in {seconds:.1f} s, {num / seconds:.1f} a second, its loading included.",
        _table_of(run),
    ]  # fmt: skip
    return {"timings": timings, "report": _report(run)}


_QUIET = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


def _command(out: Path, settings: Sequence[str]) -> list[str]:
    recipe = out.parent / "recipe.toml"
    write_text(recipe, f'out = "{out}"\n')
    return [sys.executable, str(ROOT / "trainer" / "main.py"), "curate", str(recipe), *settings]


def _run(out: Path, settings: Sequence[str]) -> Path:
    told = subprocess.run(_command(out, settings), **_QUIET)
    if told.returncode:
        last = (told.stderr.strip().splitlines() or [f"exit status {told.returncode}, it said nothing"])[-1]
        raise ValueError(f"{out.name}: the run failed: {last}")
    return out


def _report(run: Path) -> dict:
    return json.loads(read_text(run / "report.json"))


def _table_of(run: Path) -> str:
    return read_text(run / "report.md").split("\n\n")[1]


def _results(run: Path) -> dict[str, bytes]:
    files = [file.relative_to(run) for file in run.rglob("*") if file.is_file() and file.suffix != ".partial"]
    return {str(file): (run / file).read_bytes() for file in files if file.parts[0] not in NO_RESULT}


def _write(file: Path, rows: Sequence[dict]) -> Path:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file
