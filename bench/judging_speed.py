"""Judgments per second of a benchmark run beside a plain loop of transformers: RM-Bench's chat rows, n judgments each.

Ours is all that `eval/main.py rm_bench` does once the model is there: contexts, judgments, their file, rows, reports.
The loop is what one would write: for each response `generate` with n samples, decoded and read; or the same for batches
of responses of like lengths. Both run one random model, each in a process of its own, in turns (`bench.apart`).

A random model has no reason to stop, so its vocabulary has as many end tokens as give judgments a mean length: lengths
are then drawn with the tokens, geometric and cut at a limit, and nobody knows one before it is reached.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tokenizers import AddedToken
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from bench.apart import Apart, random_decoder
from bench.result_files import write_result
from bench.rollout_peers import left_padded, transformers_model, versions
from bench.rollout_speed import MODELS
from bench.rollout_workload import MEDIAN, MOST, SIGMA
from eval.benchmark_run import run_benchmark
from eval.data.items import Data, Item
from eval.data.rm_bench import read_rm_bench
from eval.judges.form import Sampling
from eval.judges.local import EngineJudge
from eval.judges.patarm import patarm_form
from eval.tables import markdown
from patarm_core.judgment import read_answer
from patarm_core.prompts import Message, pointwise
from rollout.contexts import ContextBuilder, PromptConfig, load_rubrics
from rollout.decoder import DecoderConfig
from rollout.engine import Engine
from trainer.machine import machine
from trainer.tiny import make_tokenizer

MEAN = MEDIAN * math.exp(SIGMA**2 / 2)  # tokens of a judgment, as in bench.rollout_workload
_ROWS = 64  # of a batch of the loop
_NUM_GREEDY = 16


@dataclass(frozen=True, slots=True)
class Setup:
    """What both sides are given."""

    decoder: DecoderConfig
    tokenizer: PreTrainedTokenizerFast
    data: Data
    max_tokens: int

    @property
    def end_tokens(self) -> list[int]:
        return [i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special]

    def builder(self) -> ContextBuilder:
        return ContextBuilder(self.tokenizer, PromptConfig(template="bare"), load_rubrics(""))


@dataclass(frozen=True, slots=True)
class Ran:
    num_judgments: int
    num_new_tokens: int
    texts: list[str]  # of the check alone


class Ours:
    """The benchmark run, into a folder of its own each time."""

    settings: dict[str, dict[str, Any]] = {"": {}}  # noqa: RUF012

    def __init__(self, setup: Setup) -> None:
        self._setup, self._builder = setup, setup.builder()
        self._engine = Engine(random_decoder(setup.decoder), setup.tokenizer)

    def run(self, votes: int, seed: int, max_tokens: int, is_greedy: bool = False) -> Ran:
        judge = EngineJudge(
            engine=self._engine, form=patarm_form(load_rubrics(""), template="bare"), mode="pointwise",
            model="random", name="random",
            sampling=Sampling(temperature=0.0 if is_greedy else 1.0, max_tokens=max_tokens), seed=seed,
            max_context_tokens=1 << 20,
        )  # fmt: skip
        self._engine.release_memory()  # nothing is left over from the turn before
        before = self._engine.stats.counts.num_decoded_tokens
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            run_benchmark("rm_bench", self._setup.data, judge, [votes], out)
            lines = [json.loads(line) for line in (out / "judgments.jsonl").read_text(encoding="utf-8").splitlines()]
        texts = {line["question"]: line["text"] for line in lines}
        names = [f"{item.id}#{i}" for item in self._setup.data.items for i in range(len(item.responses))]
        num_new = self._engine.stats.counts.num_decoded_tokens - before
        return Ran(len(lines), num_new, [texts[name] for name in names] if is_greedy else [])


class Loop:
    """`generate`, one response at a time or in batches; its texts are read as ours are, and kept in memory."""

    settings: dict[str, dict[str, Any]] = {"one at a time": {"rows": 0}, f"{_ROWS} rows": {"rows": _ROWS}}  # noqa: RUF012

    def __init__(self, setup: Setup) -> None:
        self._setup, self._builder = setup, setup.builder()
        self._model = transformers_model(random_decoder(setup.decoder))

    @torch.inference_mode()
    def run(self, votes: int, seed: int, max_tokens: int, is_greedy: bool = False, rows: int = 0) -> Ran:
        torch.manual_seed(seed)
        contexts = [
            self._builder.pointwise(item.prompt, response, item.task, item.id)
            for item in self._setup.data.items
            for response in item.responses
        ]
        order = sorted(range(len(contexts)), key=lambda i: len(contexts[i])) if rows else list(range(len(contexts)))
        size = max(1, rows // votes)
        ends, texts, num_new, scores = self._setup.end_tokens, [""] * len(contexts), 0, []
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            token_BT, mask_BT = left_padded([contexts[i] for i in indices])
            drawn_BT = self._model.generate(
                token_BT, attention_mask=mask_BT, num_return_sequences=votes, pad_token_id=ends[0],
                eos_token_id=ends, max_new_tokens=max_tokens,
                **({"do_sample": False} if is_greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0}),
            )  # fmt: skip
            new_BT = drawn_BT[:, token_BT.shape[1] :]
            num_new += sum(_length(row, ends) for row in new_BT.tolist())
            found = self._setup.tokenizer.batch_decode(new_BT, skip_special_tokens=True)
            scores += [read_answer(text) for text in found]
            for place, i in enumerate(indices):
                texts[i] = found[place * votes]
        return Ran(len(scores), num_new, texts if is_greedy else [])


SIDES = {"ours": Ours, "loop": Loop}


def side(name: str, setup: Setup) -> Any:
    return SIDES[name](setup)


def run_judging_speed(
    data: Path | None, model: str, num_prompts: int, votes: int, shorten: int, repeats: int, out: Path | None
) -> dict:
    """Prints a table and returns the record; writes judging.json and judging.md to `out`.

    Args:
        data: RM-Bench's chat file; None: rows of about its size, of made-up words.
        num_prompts: of its rows, evenly spread.
        shorten: divides the words of prompts and responses and the tokens of judgments.

    Raises:
        ValueError: a number that makes no sense, or sides that do not compute the same model.
    """
    for option, value in (
        ("--prompts", num_prompts),
        ("--votes", votes),
        ("--shorten", shorten),
        ("--repeats", repeats),
    ):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if model not in MODELS:
        raise ValueError(f"--model {model}: must be one of {', '.join(MODELS)}")
    setup = make_setup(data, model, num_prompts, shorten)
    sides = {name: Apart(partial(side, name, setup)) for name in SIDES}
    greedy = {
        (name, label): found.run(1, 0, _NUM_GREEDY, is_greedy=True, **setting).texts
        for name, found in sides.items()
        for label, setting in found.settings.items()
    }
    if len({tuple(texts) for texts in greedy.values()}) != 1:
        raise ValueError("the sides differ in greedy judgments: they do not compute the same model")
    runs: dict[str, list[dict]] = {}
    ways = [(name, label, setting) for name, found in sides.items() for label, setting in found.settings.items()]
    with tqdm(total=repeats * len(ways), desc="judging") as bar:
        for turn in range(1, repeats + 1):
            for name, label, setting in ways[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                ran = sides[name].run(votes, turn, setup.max_tokens, **setting)
                seconds = time.perf_counter() - start
                runs.setdefault(f"{name} {label}".strip(), []).append(
                    {"turn": turn, "s": seconds, "judgments": ran.num_judgments, "new_tokens": ran.num_new_tokens}
                )
                bar.update()
    for found in sides.values():
        found.close()
    record = {
        "machine": machine(), "peers": versions(), "model": model, "data": data.name if data else "made up",
        "prompts": len(setup.data.items), "responses": len(setup.data.items[0].responses), "votes": votes,
        "shorten": shorten, "repeats": repeats, "end_tokens": len(setup.end_tokens), "max_tokens": setup.max_tokens,
        "context_tokens": _num_context_tokens(setup), "runs": runs,
    }  # fmt: skip
    text = table(record)
    if out is not None:
        write_result(out, "judging", text, record)
    print(text)
    return record


def make_setup(data: Path | None, model: str, num_prompts: int, shorten: int) -> Setup:
    """Shortened rows, and a tokenizer made of them whose end tokens end a judgment of the mean length."""
    whole = _made_up(num_prompts) if data is None else read_rm_bench(data)
    if len(whole.items) < num_prompts:
        raise ValueError(f"{data}: {len(whole.items)} prompts; --prompts {num_prompts} asks for more")
    picked = [whole.items[i * len(whole.items) // num_prompts] for i in range(num_prompts)]
    items = tuple(
        Item(
            id=item.id, part=item.part, task=item.task, row=item.row,
            prompt=tuple(Message(turn.role, shortened(turn.content, shorten)) for turn in item.prompt),
            responses=tuple(shortened(response, shorten) for response in item.responses),
        )
        for item in picked
    )  # fmt: skip
    book, V = load_rubrics(""), MODELS[model].vocab_size
    num_ends = max(1, round(V * shorten / MEAN))
    texts = [
        pointwise(item.prompt, response, item.task, book, template="bare")
        for item in items
        for response in item.responses
    ]
    tokenizer = make_tokenizer(texts, V - num_ends)
    free = V - len(tokenizer)  # few texts make fewer tokens than there is room for
    tokenizer.add_tokens([f"<|word{i}|>" for i in range(free - num_ends)])
    tokenizer.add_tokens([AddedToken(f"<|end{i}|>", special=True) for i in range(num_ends)], special_tokens=True)
    return Setup(MODELS[model], tokenizer, Data(benchmark="rm_bench", items=items), MOST // shorten)


def shortened(text: str, by: int) -> str:
    """Every so many words of the text, at least one."""
    words = text.split(" ")
    return " ".join(words[::by]) if by > 1 else text


def table(record: dict) -> str:
    """Judgments and tokens per second of each way, and how many times as long it took as ours in the same turn."""
    r = record
    ours = {run["turn"]: run["s"] for run in r["runs"]["ours"]}
    rows = [["", "judgments/s", "s (least - most)", "new tokens/s", "its time over ours"]]
    for name, runs in r["runs"].items():
        seconds = [run["s"] for run in runs]
        ratios = [run["s"] / ours[run["turn"]] for run in runs]
        rows.append([
            name, f"{median(run['judgments'] / run['s'] for run in runs):.2f}",
            f"{median(seconds):.1f} ({min(seconds):.1f} - {max(seconds):.1f})",
            f"{median(run['new_tokens'] / run['s'] for run in runs):,.0f}",
            "-" if name == "ours" else f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
        ])  # fmt: skip
    tokens = [run["new_tokens"] / run["judgments"] for run in r["runs"]["ours"]]
    return "\n".join([
        f"{r['machine']['device']}; {r['machine']['threads']} threads; torch {r['machine']['torch']}, transformers "
        f"{r['peers']['transformers']}; commit {r['machine']['commit']}; {r['repeats']} turns, float32, model "
        f"{r['model']}.",
        "",
        f"{r['data']}: {r['prompts']} prompts x {r['responses']} responses x {r['votes']} judgments, lengths "
        f"divided by {r['shorten']}: {r['context_tokens']:,} context tokens in all, {median(tokens):.0f} new tokens a "
        f"judgment on average, at most {r['max_tokens']}.",
        "",
        markdown(rows),
    ])  # fmt: skip


def _num_context_tokens(setup: Setup) -> int:
    builder = setup.builder()
    return sum(
        len(builder.pointwise(item.prompt, response, item.task, item.id))
        for item in setup.data.items
        for response in item.responses
    )


def _length(row: Sequence[int], ends: Sequence[int]) -> int:
    """New tokens, the end token included."""
    return next((place + 1 for place, token in enumerate(row) if token in ends), len(row))


def _made_up(num_prompts: int) -> Data:
    """Rows of 335 words or so a response, as many as RM-Bench's chat responses have tokens."""
    words = ["tea", "rain", "bread", "stone", "cloud", "salt", "leaf", "road", "good", "bad", "is", "and", "the"]

    def text(number: int, length: int) -> str:
        return " ".join(words[(number * 7 + i * i) % len(words)] for i in range(length))

    items = [
        Item(
            id=f"chat/{i}", part="chat", task="chat", prompt=(Message("user", text(i, 20)),),
            responses=tuple(text(6 * i + k, 300 + 10 * k) for k in range(6)),
            row={"id": f"chat/{i}", "domain": "chat"},
        )
        for i in range(num_prompts)
    ]  # fmt: skip
    return Data(benchmark="rm_bench", items=tuple(items))
