"""A GRPO step on one GPU at the shapes of Qwen3: update tokens/s, share of the GPU's products, memory, rollout share.

Random weights, drawn on the GPU and written to a directory, from which learner and engine are made as in training:
bfloat16 with float32 master weights, without activation checkpointing, for 8B with moments in the host's memory.
Products are counted on tree tokens, without what the head computes again, and divided by the seconds of the update, and
of the update without its optimiser:

    6 x parameters of blocks x tokens + 6 x V x D x loss tokens + 12 x H x C x layers x (query, key) that see each other
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.remote import EngineError, Remote
from bench.result_files import write_result
from bench.rollout_gpu import random_decoder
from bench.rollout_workload import Work
from bench.step_ours import OurStep, Setup
from bench.step_tables import gpu_table
from bench.step_time import Options, of_turns, sum_of_phases
from bench.step_workload import MEANS, SIGMAS, pair_work
from rollout.decoder import DecoderConfig
from rollout.kv_cache import bytes_per_token
from rollout.shapes import QWEN3
from rollout.weights import save_decoder
from trainer.config import ModelConfig
from trainer.machine import machine
from trainer.plan_job import GIB, GPUS

MODELS = {"1.7b": QWEN3["Qwen3-1.7B"], "4b": QWEN3["Qwen3-4B"], "8b": QWEN3["Qwen3-8B"]}
# What a GPU of 141 GB has room for; the longest context with its judgment has 5,247 tokens.
_TOKENS_PER_MICRO_BATCH = {"1.7b": 32_768, "4b": 12_288, "8b": 5376}
_OFFLOADED = ("8b",)
_WARM_UPS = 4, 5  # times shorter


def run_step_gpu(options: Options, models: list[str], out: Path | None) -> dict[str, Any]:
    """Prints and returns the result, one record per model and n; writes step_gpu.json and step_gpu.md to `out`.

    Raises:
        ValueError: an unknown model, or no GPU.
    """
    for name in models:
        if name not in MODELS:
            raise ValueError(f"--models {name}: must be of {', '.join(MODELS)}")
    _require_gpu()
    result: dict[str, Any] = {
        "machine": machine(), "options": asdict(options), "means": MEANS, "sigmas": SIGMAS, "records": []
    }  # fmt: skip

    def report() -> str:
        text = gpu_table(result)
        if out is not None:
            write_result(out, "step_gpu", text, result)
        return text

    for name in models:
        num_turns = len(options.rollouts) * options.steps
        with (
            tempfile.TemporaryDirectory() as folder,
            tqdm(total=2 + len(_WARM_UPS) + num_turns, unit="part", desc=f"{name}, weights") as bar,
        ):
            writer = Remote(_Weights, name, folder)  # a process of its own gives all of its memory back
            writer.close()
            bar.update()
            for record in _measured(name, folder, options, bar):
                result["records"].append(record)
                report()
    print(report())
    return result


class _Weights:
    def __init__(self, model: str, folder: str) -> None:
        save_decoder(random_decoder(MODELS[model], "cuda"), folder, torch.bfloat16)


def _measured(name: str, folder: str, options: Options, bar: tqdm) -> Iterator[dict[str, Any]]:
    """A record of each n, by one process, which draws and compiles everything once before: at the most n, shortened."""
    config = MODELS[name]
    most = max(options.rollouts)
    # Twice: the second time lengths are others, and kernels are compiled for any.
    warm_ups = [pair_work(options.pairs, most, times * options.shorten, config.vocab_size) for times in _WARM_UPS]
    setup = Setup(
        folder=folder, model=ModelConfig(dtype="bfloat16"), cpu_offload=name in _OFFLOADED,
        tokens_per_micro_batch=_TOKENS_PER_MICRO_BATCH[name],
        kv_gib=kv_gib(options.work(most, 0, config.vocab_size), config),
    )  # fmt: skip
    ours: Remote | None = None

    def step(what: str, work: Work, turn: int) -> dict[str, Any]:
        done = part(f"{what}, rollout", 0, ours.call, "roll_out", work, turn)
        done |= part(f"{what}, update", 1, ours.call, "learn", work, turn)
        return done | {"step_s": sum_of_phases(done)}

    def part(what: str, counts: int, run: Callable[..., Any], *arguments: Any) -> Any:
        bar.set_description(f"{name}, {what}")
        found = run(*arguments)
        bar.update(counts)
        return found

    for n in options.rollouts:
        record: dict[str, Any] = {"model": name, "num_rollouts": n}
        try:
            if ours is None:
                ours = part("learner and engine", 1, Remote, OurStep, setup)
                first = [step("warm-up", work, 0) for work in warm_ups][-1]
                ours.call("peak_bytes")
            turns = [first]
            for turn in range(1, options.steps + 1):
                turns.append(step(f"n = {n}", options.work(n, turn, config.vocab_size), turn))
            record |= _of(config, of_turns(turns)) | {"peak_bytes": ours.call("peak_bytes")}
        except (EngineError, OSError) as error:
            record["error"] = str(error)[:200]
            if ours is not None:
                ours.close()  # what it holds is nobody's any more; the next n has a process of its own
                ours = None
                bar.total += 1 + len(_WARM_UPS)
        yield record
    if ours is not None:
        ours.close()


def _of(config: DecoderConfig, found: dict[str, Any]) -> dict[str, Any]:
    flops, peak_flops = update_flops(config, found), _peak_flops()
    backward_s = found["update_s"] - found["optimizer_s"]
    return found | {
        "update_flops": flops, "update_tokens_per_s": found["update_tokens"] / found["update_s"],
        "mfu": None if peak_flops is None else flops / found["update_s"] / peak_flops,
        "mfu_without_optimizer": None if peak_flops is None else flops / backward_s / peak_flops,
    }  # fmt: skip


def update_flops(config: DecoderConfig, size: dict[str, int]) -> float:
    """Of the model, forward and backward, for an update of this size (`bench.step_ours.update_size`)."""
    head = config.vocab_size * config.hidden_size
    blocks = config.num_parameters - head * (1 if config.tie_word_embeddings else 2)
    attention = 12 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return 6 * blocks * size["update_tokens"] + 6 * head * size["loss_tokens"] + attention * size["attention_pairs"]


def kv_gib(work: Work, config: DecoderConfig) -> float:
    """Keys and values of all contexts and judgments side by side, and half as much again for half-full pages."""
    num_tokens = work.num_distinct_tokens + work.num_new_tokens
    return 1.5 * num_tokens * bytes_per_token(config, torch.bfloat16) / GIB


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is there")


def _peak_flops() -> float | None:
    """Of the data sheet; None for a GPU that it is not there for."""
    name = torch.cuda.get_device_name()
    return next((gpu.flops for known, gpu in GPUS.items() if known in name), None)
