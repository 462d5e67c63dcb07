"""Decoding on a GPU at the shapes of Qwen3: tokens per second beside what the memory's bandwidth allows.

A decode step must read every weight but the embedding's, the keys and values of each context once, and those of each
sample's own tokens. These bytes over the measured bandwidth of a copy are the floor, the same for all engines. Weights
are random, in bfloat16; engines run one after the other, since each takes the memory that is left. Timed is a window
of steps in which all samples decode; what of it no kernel runs in is the share outside the GPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from bench.kernel_speed import GpuMeter, kernel_us
from bench.rollout_peers import number_tokenizer, transformers_model
from bench.rollout_workload import static
from rollout.decoder import Decoder, DecoderConfig
from rollout.engine import Engine, EngineConfig
from rollout.params import SamplingParams
from rollout.shapes import QWEN3

MODELS = {"8b": QWEN3["Qwen3-8B"], "14b": QWEN3["Qwen3-14B"]}
CASES = [(64, 1024), (256, 1024), (64, 4096), (256, 4096)]  # samples, tokens of their contexts
_NUM_SAMPLES = 8  # of each context
_NUM_WARM = 16  # steps before the window: what is compiled or recorded on first use is not timed
_NUM_STEPS = 96
_NUM_PROFILED = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds to the first token of all samples; of the steps of the window; of its kernels, per step, if known."""

    first_s: float
    step_s: list[float]
    busy_s: float | None = None


Run = Callable[[list[list[int]]], Window]
ENGINES: dict[str, tuple[Callable[[Decoder], Run], int]] = {  # and how many of the cases it is given
    "ours": (lambda decoder: _Ours(decoder, EngineConfig()), 4),
    "ours, no graphs": (lambda decoder: _Ours(decoder, EngineConfig(cuda_graphs=False)), 2),
    "ours, same bits in any company": (lambda decoder: _Ours(decoder, EngineConfig(batch_invariant=True)), 1),
    "generate": (lambda decoder: _Generate(decoder), 2),
}


def measure_decoding(model: str, repeats: int, only: list[str]) -> Iterator[dict]:
    """One record per engine and case. Our engine always runs, `generate` if `only` is empty or names it."""
    config = MODELS[model]
    bytes_per_s = GpuMeter().ceilings()["copy_bytes_per_s"]
    decoder = random_decoder(config, "cuda")
    names = [name for name in ENGINES if name != "generate" or not only or name in only]
    with tqdm(total=sum(ENGINES[name][1] for name in names), desc=f"{model} decoding", unit="case") as bar:
        for name in names:
            make, num_cases = ENGINES[name]
            run = make(decoder)
            for case in CASES[:num_cases]:
                yield {"model": model, "engine": name} | _measured(run, config, case, repeats, bytes_per_s)
                _free_memory()
                bar.update()
            del run
            _free_memory()


def _measured(run: Run, config: DecoderConfig, case: tuple[int, int], repeats: int, bytes_per_s: float) -> dict:
    num_samples, length = case
    record = {"num_samples": num_samples, "context": length}
    work = static(num_samples // _NUM_SAMPLES, length, 1, config.vocab_size)
    try:
        run(work.contexts)  # compiles, and records graphs
        _free_memory()
        windows = [run(work.turned(1 + turn, config.vocab_size).contexts) for turn in range(repeats)]
    except torch.OutOfMemoryError:
        return record | {"error": "out of memory"}
    steps = [median(window.step_s) for window in windows]
    step_s, busy_s = median(steps), windows[-1].busy_s
    floor_s = bytes_per_step(config, num_samples, length) / bytes_per_s
    return record | {
        "first_s": median(window.first_s for window in windows),
        "step_s": step_s, "least_step_s": min(steps), "most_step_s": max(steps),
        "tok_per_s": num_samples / step_s, "floor_s": floor_s, "of_floor": floor_s / step_s,
        "outside": None if busy_s is None else max(0.0, 1 - busy_s / step_s),
    }  # fmt: skip


class _Ours:
    def __init__(self, decoder: Decoder, config: EngineConfig) -> None:
        self._engine = Engine(decoder, number_tokenizer(decoder.config.vocab_size, end_token=None), config)

    def __call__(self, contexts: list[list[int]]) -> Window:
        engine, start = self._engine, time.perf_counter()
        most = engine.decoder.config.max_position_embeddings - len(contexts[0])
        requests = [
            engine.submit(context, SamplingParams(n=_NUM_SAMPLES, max_tokens=most, seed=i))
            for i, context in enumerate(contexts)
        ]
        while not all(sample.token_ids for request in requests for sample in request.samples):
            engine.step()
        first_s = time.perf_counter() - start
        for _ in range(_NUM_WARM):
            engine.step()
        step_s = [_seconds(engine.step) for _ in range(_NUM_STEPS)]  # a step ends with its tokens on the host
        busy_us = kernel_us(lambda: [engine.step() for _ in range(_NUM_PROFILED)])
        for request in requests:
            engine.cancel(request)
        return Window(first_s, step_s, busy_us and busy_us / _NUM_PROFILED / 1e6)


class _Generate:
    """transformers `generate`, every sample a row of one batch."""

    def __init__(self, decoder: Decoder) -> None:
        self._model = transformers_model(decoder)

    @torch.inference_mode()
    def __call__(self, contexts: list[list[int]]) -> Window:
        stamps = [time.perf_counter()]

        def stamp(token_BT: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            torch.cuda.synchronize()
            stamps.append(time.perf_counter())
            return torch.zeros(len(token_BT), dtype=torch.bool, device=token_BT.device)

        token_BT = torch.tensor(contexts, device=self._model.device)
        num_new = 1 + _NUM_WARM + _NUM_STEPS
        self._model.generate(
            token_BT, attention_mask=torch.ones_like(token_BT), num_return_sequences=_NUM_SAMPLES, pad_token_id=0,
            max_new_tokens=num_new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, stopping_criteria=[stamp],
        )  # fmt: skip
        step_s = [end - start for start, end in pairwise(stamps[1:])]
        return Window(stamps[1] - stamps[0], step_s[_NUM_WARM:])


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def bytes_per_step(config: DecoderConfig, num_samples: int, context_length: int) -> float:
    """Of weights, keys and values in bfloat16, in the middle of the window."""
    weights = config.num_parameters - config.vocab_size * config.hidden_size  # one row of the embedding per sample
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    tokens = num_samples // _NUM_SAMPLES * context_length + num_samples * (1 + _NUM_WARM + _NUM_STEPS / 2)
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
