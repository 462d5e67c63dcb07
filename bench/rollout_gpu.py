"""Decoding on a GPU at the shapes of Qwen3: tokens per second beside what the memory's bandwidth allows.

A decode step must read every weight but the embedding's, the keys and values of each context once, and those of each
sample's own tokens. These bytes over the measured bandwidth of a copy are the floor, the same for all engines. Weights
are random, in bfloat16; engines run one after the other, since each takes the memory that is left.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from bench.kernel_speed import GpuMeter
from bench.rollout_peers import Contender, Generate, Ours, Written, check_lengths
from bench.rollout_workload import Work, static
from rollout.decoder import Decoder, DecoderConfig
from rollout.engine import EngineConfig

_QWEN3 = {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
MODELS = {
    "8b": DecoderConfig(
        hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32, **_QWEN3
    ),
    "14b": DecoderConfig(
        hidden_size=5120, intermediate_size=17_408, num_hidden_layers=40, num_attention_heads=40, **_QWEN3
    ),
}
CASES = [(64, 1024), (64, 4096), (256, 1024), (256, 4096)]  # samples, tokens of their contexts
_NUM_SAMPLES = 8  # of each context
_NUM_STEPS = 128
# Graphs are captured when a batch size comes for the first time: the untimed run is as large as the timed ones.
ENGINES: dict[str, Callable[[Decoder], Contender]] = {
    "ours": lambda decoder: _ours(decoder, has_graphs=True),
    "ours, no graphs": lambda decoder: _ours(decoder, has_graphs=False),
    "generate": Generate,
}


def measure_decoding(model: str, repeats: int) -> list[dict]:
    """One record per case and engine."""
    config = MODELS[model]
    bytes_per_s = GpuMeter().ceilings()["copy_bytes_per_s"]
    decoder = random_decoder(config, "cuda")
    records = []
    for name, make in ENGINES.items():
        records += _measure(name, make(decoder), config, repeats, bytes_per_s)
        _free_memory()
    return [{"model": model} | record for record in records]


def _measure(name: str, engine: Contender, config: DecoderConfig, repeats: int, bytes_per_s: float) -> list[dict]:
    records = []
    for num_samples, length in CASES:
        work = static(num_samples // _NUM_SAMPLES, length, 1, config.vocab_size)
        record = {"engine": name, "num_samples": num_samples, "context": length}
        whole = {"rows": num_samples} if isinstance(engine, Generate) else {}
        try:
            record |= timed(partial(engine.run, **whole), work, repeats, config.vocab_size)
            record["floor_s"] = bytes_per_step(config, num_samples, length) / bytes_per_s
            record["of_floor"] = record["floor_s"] / record["step_s"]
        except torch.OutOfMemoryError:
            record["error"] = "out of memory"
        records.append(record)
        _free_memory()
    return records


def _ours(decoder: Decoder, has_graphs: bool) -> Ours:
    return Ours(decoder, config=EngineConfig(cuda_graphs=has_graphs))


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def timed(run: Callable[[Work], Written], contexts: Work, repeats: int, vocab_size: int) -> dict:
    """Seconds to the first token of all samples, and of a step after it."""
    first_s, step_s = [], []
    for turn in range(repeats + 1):
        seconds = []
        for part, num_new in enumerate((1, 1 + _NUM_STEPS)):
            work = Work("decode", contexts.contexts, [(num_new,) * _NUM_SAMPLES] * len(contexts.contexts))
            work = work.turned(2 * turn + part, vocab_size)
            torch.cuda.synchronize()
            start = time.perf_counter()
            check_lengths(run(work), work)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        if turn:  # the first warms up
            first_s.append(seconds[0])
            step_s.append((seconds[1] - seconds[0]) / _NUM_STEPS)
    num_samples = _NUM_SAMPLES * len(contexts.contexts)
    return {
        "first_s": median(first_s), "step_s": median(step_s), "least_step_s": min(step_s), "most_step_s": max(step_s),
        "tok_per_s": num_samples / median(step_s),
    }  # fmt: skip


def bytes_per_step(config: DecoderConfig, num_samples: int, context_length: int) -> float:
    """Of weights, keys and values in bfloat16, on average over the steps."""
    weights = config.num_parameters - config.vocab_size * config.hidden_size  # one row of the embedding per sample
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    tokens = num_samples // _NUM_SAMPLES * context_length + num_samples * (1 + _NUM_STEPS) / 2
    return 2 * (weights + per_token * tokens)


@torch.no_grad()
def random_decoder(config: DecoderConfig, device: str) -> Decoder:
    """Weights drawn on the device in bfloat16: no copy of them ever lies in main memory."""
    with torch.device("meta"):
        decoder = Decoder(config).to(torch.bfloat16)
    decoder.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 0.02, generator=generator)
    return decoder.eval()
