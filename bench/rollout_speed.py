"""Tokens per second of the rollout engine beside other engines: one random model, the same contexts, the same lengths.

Each engine runs in a process of its own, and they wait for one another (`bench.apart`). First all have to write the
same greedy tokens. Then each setting of each engine has one turn, and the best one of each engine goes on: engines take
turns, each turn in other tokens, so that a noisy machine hits all alike and nothing is left over from the turn before.
Only tokens that were asked for count, and no context tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from bench import rollout_gpu
from bench.apart import Apart, contender, one_line
from bench.result_files import write_result
from bench.rollout_peers import CONTENDERS, Contender, Written, check_lengths, versions
from bench.rollout_tables import decoding_table, tables
from bench.rollout_workload import Work, judge_contexts, judging, static
from rollout.decoder import DecoderConfig
from trainer.machine import machine

_V = 8192
_SMALL = {"vocab_size": _V, "head_dim": 64, "max_position_embeddings": 16_384}
MODELS = {
    "10m": DecoderConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2,
        **_SMALL,
    ),
    "50m": DecoderConfig(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=13, num_attention_heads=8, num_key_value_heads=4,
        **_SMALL,
    ),
}  # fmt: skip
_NUM_GREEDY = 16  # tokens of the check


def run_rollout_speed(
    models: list[str], num_pairs: int, num_rollouts: int, repeats: int, only: list[str], shorten: int,
    data: Path | None, tokenizer: Path | None, out: Path | None,
) -> list[dict]:  # fmt: skip
    """Prints the tables and returns one record per model and workload; writes rollout.json and rollout.md to `out`.

    Args:
        models: names of MODELS; on a GPU, of rollout_gpu.MODELS too, whose decoding alone is measured.
        only: names of engines; none for all. Ours always runs: the others are compared with it.
        shorten: divides all lengths.

    Raises:
        ValueError: a name or a number that makes no sense, or engines that do not agree.
    """
    for option, names, known in (("--models", models, MODELS | rollout_gpu.MODELS), ("--only", only, CONTENDERS)):
        for name in names:
            if name not in known:
                raise ValueError(f"{option} {name}: must be of {', '.join(known)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = [model for model in models if model in rollout_gpu.MODELS]
    if large and device == "cpu":
        raise ValueError(f"--models {large[0]}: needs a GPU; {', '.join(MODELS)} run on a CPU")
    for option, value in (("--rollouts", num_rollouts), ("--repeats", repeats), ("--shorten", shorten)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    contexts = judge_contexts(data, tokenizer, num_pairs)
    if shorten > min(map(len, contexts)):
        raise ValueError(f"--shorten {shorten}: the shortest context has {min(map(len, contexts))} tokens")
    works = [judging(contexts, num_rollouts, shorten, _V), static(64, 512 // shorten, 256 // shorten, _V)]
    names = [name for name in CONTENDERS if name == "ours" or not only or name in only]
    setting = {
        "machine": machine(), "peers": versions(), "pairs": num_pairs, "rollouts": num_rollouts, "repeats": repeats,
        "shorten": shorten, "data": data.name if data else "embedded", "dtype": "float32",
    }  # fmt: skip
    records: list[dict] = []
    decoding: list[dict] = []

    def report() -> str:
        text = tables(records, setting) + decoding_table(decoding)
        if out is not None:
            write_result(out, "rollout", text, setting | {"records": records, "decoding": decoding})
        return text

    for model in (model for model in models if model in MODELS):
        make = partial(partial, contender, config=MODELS[model], device=device)
        engines, errors = prepare(names, lambda name, make=make: Apart(make(name)), works[0])
        for work in works:
            records.append(describe(model, work) | measure(engines, work, repeats, f"{model} {work.name}"))
            records[-1]["engines"] |= {name: {"error": error} for name, error in errors.items()}
            report()  # what is known so far
        for engine in engines.values():
            engine.close()
    for model in large:
        for record in rollout_gpu.measure_decoding(model, repeats, only):
            decoding.append(record)
            report()
    print(report())
    return records


def prepare(
    names: list[str], make: Callable[[str], Contender], work: Work
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Engines, by `make(name)`, that write the same greedy tokens to a handful of contexts, and why others cannot run.

    Raises:
        ValueError: an engine runs, and its tokens are not those of ours.
    """
    few = Work("greedy", work.contexts[:5], [(_NUM_GREEDY,)] * len(work.contexts[:5]))
    engines, errors = {}, {}
    ours: Written = []
    for name in names:
        try:
            engines[name] = make(name)
            written = engines[name].run(few, is_greedy=True)
        except Exception as error:
            if name == "ours":
                raise
            if isinstance(failed := engines.pop(name, None), Apart):
                failed.close()
            errors[name] = "not installed" if isinstance(error, ImportError) else one_line(error)
            continue
        ours = ours or written  # the first
        if written != ours:
            raise ValueError(f"{name} and ours differ in greedy tokens: they do not compute the same model")
    return engines, errors


def measure(engines: dict[str, Contender], work: Work, repeats: int, label: str) -> dict:
    """Tokens per second of every setting once, seconds of the best ones in turns, and what our engine counted."""
    found: dict[str, dict] = {}
    with tqdm(
        total=repeats * len(engines) + sum(len(engine.settings) for engine in engines.values()), desc=label
    ) as bar:

        def seconds_of(name: str, setting: str, work: Work) -> float:
            """Of one run; a peer that fails has infinitely many, and its error."""
            start = time.perf_counter()
            try:
                written = engines[name].run(work, **engines[name].settings[setting])
                seconds = time.perf_counter() - start
                check_lengths(written, work)
            except Exception as error:
                if name == "ours":
                    raise
                found[name]["error"], seconds = one_line(error), math.inf
            bar.update()
            return seconds

        for name, engine in engines.items():
            found[name] = {"error": None}
            tries = {setting: work.num_new_tokens / seconds_of(name, setting, work) for setting in engine.settings}
            found[name] |= {"tries": tries, "setting": max(tries, key=tries.__getitem__), "s": []}
        for turn in range(1, repeats + 1):
            moved = work.turned(turn, _V)
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                if found[name]["error"] is None:
                    found[name]["s"].append(seconds_of(name, found[name]["setting"], moved))
    ours = found["ours"]["s"]
    for engine in found.values():
        if engine["error"] is None:
            s = engine["s"]
            engine |= {"median_s": median(s), "least_s": min(s), "most_s": max(s)}
            engine["tok_per_s"] = work.num_new_tokens / engine["median_s"]
            engine["over_ours"] = median(x / y for x, y in zip(s, ours, strict=True))
    return {"engines": found, "counts": engines["ours"].counts}


def describe(model: str, work: Work) -> dict:
    return {
        "model": model,
        "num_parameters": MODELS[model].num_parameters,
        "workload": work.name,
        "num_contexts": len(work.contexts),
        "num_sequences": sum(map(len, work.lengths)),
        "num_context_tokens": work.num_context_tokens,
        "num_copied_tokens": sum(len(c) * len(n) for c, n in zip(work.contexts, work.lengths, strict=True)),
        "num_distinct_tokens": work.num_distinct_tokens,
        "num_new_tokens": work.num_new_tokens,
        "longest": max(map(max, work.lengths)),
    }
