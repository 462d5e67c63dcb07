"""A GRPO step on one GPU at the shapes of Qwen3: update tokens/s, share of the GPU's products, memory, rollout share.

Random weights, drawn on the GPU and written to a directory, from which learner and engine are made as in training:
bfloat16 with float32 master weights, activation checkpointing, and for 8B moments in the host's memory. Products are
counted on tree tokens, without what checkpointing and the head compute again:

    6 x parameters of blocks x tokens + 6 x V x D x loss tokens + 12 x H x C x layers x (query, key) that see each other
"""

from __future__ import annotations

import tempfile
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
from bench.step_workload import MEANS, SIGMAS
from rollout.decoder import DecoderConfig
from rollout.kv_cache import bytes_per_token
from rollout.shapes import QWEN3
from rollout.weights import save_decoder
from trainer.config import ModelConfig
from trainer.machine import machine
from trainer.plan_job import GIB, GPUS

MODELS = {"1.7b": QWEN3["Qwen3-1.7B"], "4b": QWEN3["Qwen3-4B"], "8b": QWEN3["Qwen3-8B"]}
_OFFLOADED = ("8b",)


def run_step_gpu(options: Options, models: list[str], out: Path | None) -> dict[str, Any]:
    """Prints and returns the result, one record per model and n; writes step_gpu.json and step_gpu.md to `out`.

    Raises:
        ValueError: an unknown model, or no GPU.
    """
    for name in models:
        if name not in MODELS:
            raise ValueError(f"--models {name}: must be of {', '.join(MODELS)}")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is there")
    result: dict[str, Any] = {
        "machine": machine(), "options": asdict(options), "means": MEANS, "sigmas": SIGMAS, "records": []
    }  # fmt: skip

    def report() -> str:
        text = gpu_table(result)
        if out is not None:
            write_result(out, "step_gpu", text, result)
        return text

    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            writer = Remote(_Weights, name, folder)  # a process of its own gives all of its memory back
            writer.close()
            for n in options.rollouts:
                result["records"].append({"model": name, "num_rollouts": n} | _measure(name, folder, n, options))
                report()
    print(report())
    return result


class _Weights:
    def __init__(self, model: str, folder: str) -> None:
        save_decoder(random_decoder(MODELS[model], "cuda"), folder, torch.bfloat16)


def _measure(name: str, folder: str, n: int, options: Options) -> dict[str, Any]:
    config = MODELS[name]
    work = options.work(n, 0, config.vocab_size)
    setup = Setup(
        folder=folder, model=ModelConfig(dtype="bfloat16", activation_checkpointing=True),
        cpu_offload=name in _OFFLOADED, kv_gib=kv_gib(work, config),
    )  # fmt: skip
    ours = None
    try:
        ours = Remote(OurStep, setup)
        turns = []
        for turn in tqdm(range(options.steps + 1), desc=f"{name}, n = {n}", unit="turn"):
            now = options.work(n, turn, config.vocab_size)
            done = ours.call("roll_out", now, turn) | ours.call("learn", now, turn)
            turns.append(done | {"step_s": sum_of_phases(done)})
        peak = ours.call("peak_bytes")
    except EngineError as error:
        return {"error": str(error)[:80]}
    finally:
        if ours is not None:
            ours.close()
    found = of_turns(turns)
    flops, peak_flops = update_flops(config, found), _peak_flops()
    return found | {
        "peak_bytes": peak, "update_flops": flops, "update_tokens_per_s": found["update_tokens"] / found["update_s"],
        "mfu": None if peak_flops is None else flops / found["update_s"] / peak_flops,
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


def _peak_flops() -> float | None:
    """Of the data sheet; None for a GPU that it is not there for."""
    name = torch.cuda.get_device_name()
    return next((gpu.flops for known, gpu in GPUS.items() if known in name), None)
