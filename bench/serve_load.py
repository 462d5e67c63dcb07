"""Many clients at once on the server: what it refuses, whether anything is lost, and whether a reply ever differs.

The server is a process of its own with a tiny random model, which writes much that is not even a character. Clients ask
from a fixed set of requests of every kind; each reply is held to what the engine gives offline for the same seed. Some
clients leave in the middle of a stream; in the end the server must have all of its pages back.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import httpx
import numpy as np

from bench.result_files import write_result
from kernels.philox import stream_seed
from rollout.families import DecoderConfig
from rollout.judge import Judge
from rollout.params import SamplingParams
from rollout.questions import Question
from rollout.server_text import without_stop
from trainer.machine import machine
from trainer.tiny import make_model, make_tokenizer

_NUM_REQUESTS = 96
_LEAVING = 0.1  # share of streams that the client leaves after the first events
_WORDS = ("tea", "rain", "bread", "stone", "cloud", "salt", "leaf", "road", "the", "answer", "is", "good", "bad")
_MODEL = DecoderConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, max_position_embeddings=512,
)  # fmt: skip
_DOOR = Path(__file__).parent.parent / "rollout" / "main.py"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request and the reply that it must get: the texts of its choices, or a whole record."""

    path: str
    body: dict
    expected: list[str] | dict


@dataclass(slots=True)
class Load:
    """What the clients have met so far."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)


def run_serve_load(num_clients: int, seconds: float, out: Path | None) -> dict:
    """Prints the table and returns its numbers; writes serve.json and serve.md to `out`.

    Raises:
        ValueError: a reply was lost, differed or was an error other than 429, or pages did not return.
    """
    max_open = max(2, num_clients * 3 // 4)  # too few for all of them, so that some are told to come again
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, _MODEL, make_tokenizer([" ".join(_WORDS)] * 9, _MODEL.vocab_size), seed=0, init_std=0.2)
        asks = _asks(Judge.from_pretrained(folder, rubrics="primary", template="bare", max_completion_tokens=40))
        with _server(folder, max_open) as (process, url):
            before = _metrics(url)
            load = asyncio.run(_run_clients(url, asks, num_clients, seconds))
            after = _settled_metrics(url)
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
    counts = load.counts
    p50, p95, most = (float(np.quantile(load.latencies_s or [0.0], q)) for q in (0.5, 0.95, 1.0))
    record = {
        "clients": num_clients, "seconds": seconds, "max_open_requests": max_open, "equal": counts.pop("equal", 0),
        "refused_429": counts.pop("429", 0), "left": counts.pop("left", 0), "different": counts.pop("different", 0),
        "lost": counts.pop("lost", 0), "other": dict(counts), "latency_p50_s": p50, "latency_p95_s": p95,
        "latency_max_s": most, "exit_status": status,
        "decoded_tok_per_s": (after["decoded_tokens_total"] - before["decoded_tokens_total"]) / seconds,
        "pages_missing": after["pages"] - after["free_pages"] - after["cached_pages"],
        "rows_running": after["running_rows"], "requests_open": after["open_requests"],
    }  # fmt: skip
    text = _table(record)
    print(text)
    if out is not None:
        write_result(out, "serve", text, {"machine": machine(), **record})
    bad = ("different", "lost", "other", "exit_status", "pages_missing", "rows_running", "requests_open")
    if wrong := {name: record[name] for name in bad if record[name]}:
        raise ValueError(f"the server did not hold: {wrong}")
    return record


def _asks(judge: Judge) -> list[Ask]:
    """Chats and completions, whole and streamed, scores and comparisons, with their replies of the engine offline."""
    paths, bodies, questions = zip(*(_question(judge, number) for number in range(_NUM_REQUESTS)))
    answers = (answer if isinstance(answer, list) else answer.record() for answer in judge.answers(questions))
    return [Ask(*ask) for ask in zip(paths, bodies, answers, strict=True)]


def _question(judge: Judge, number: int) -> tuple[str, dict, Question]:
    """A request's path and body, and how it is put to the engine."""
    rng, tokenizer = Random(number), judge.engine.tokenizer
    text = " ".join(rng.choices(_WORDS, k=rng.randint(1, 30)))
    params = SamplingParams(
        n=rng.choice([1, 1, 4]), max_tokens=rng.randint(4, 48), temperature=rng.choice([0.0, 0.8, 1.5]),
        stop=rng.choice([(), ("a",), ("</answer>", "e")]), seed=stream_seed(number, 0),
    )  # fmt: skip
    body = {"n": params.n, "seed": number}
    if number % 4 < 2:
        body |= {"max_tokens": params.max_tokens, "temperature": params.temperature, "stop": list(params.stop)}
        body |= {"stream": bool(number % 4)}
        path, context, prompt = "/v1/completions", text, {"prompt": text}
        if rng.getrandbits(1):
            path, prompt = "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}
            context = tokenizer.apply_chat_template(prompt["messages"], add_generation_prompt=True, tokenize=False)
        token_ids = tokenizer.encode(context, add_special_tokens=False)
        texts = Question([token_ids], [params], lambda c: [without_stop(one, params.stop) for one in c[0]])
        return path, body | prompt, texts
    judge, body = replace(judge, num_votes=params.n, seed=number), body | {"prompt": "Say something."}
    if number % 4 == 2:
        return "/score", body | {"response": text}, judge.ask("Say something.", text, "chat")
    method, other = rng.choice(["mean", "pairwise"]), text[::-1]
    body |= {"response_a": text, "response_b": other, "method": method}
    return "/compare", body, judge.ask_to_compare("Say something.", text, other, "chat", method)


@contextmanager
def _server(model: str, max_open: int) -> Iterator[tuple[subprocess.Popen, str]]:
    command = [
        sys.executable, str(_DOOR), "serve", "--model", model, "--port", "0", "--rubrics", "primary", "--template",
        "bare", "--max-completion-tokens", "40", "--max-open-requests", str(max_open),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[-1]
        for _ in range(600):
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield process, url
    finally:
        process.kill()
        process.wait()


async def _run_clients(url: str, asks: list[Ask], num_clients: int, seconds: float) -> Load:
    load, end = Load(), time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as http:

        async def client(number: int) -> None:
            rng = Random(number)
            while (started := time.perf_counter()) < end:
                try:
                    outcome = await _outcome(http, rng.choice(asks), rng)
                except httpx.HTTPError as error:
                    outcome = "lost"
                    print(f"lost: {error!r}", file=sys.stderr)
                load.counts[outcome] += 1
                if outcome == "equal":
                    load.latencies_s.append(time.perf_counter() - started)
                elif outcome == "429":
                    await asyncio.sleep(0.5 + rng.random() if seconds > 10 else 0.1)

        await asyncio.gather(*map(client, range(num_clients)))
    return load


async def _outcome(http: httpx.AsyncClient, ask: Ask, rng: Random) -> str:
    """equal, different, lost (a stream that ends early), left (by this client), or a status that is not 200."""
    if not ask.body.get("stream"):
        response = await http.post(ask.path, json=ask.body)
        if response.status_code != 200:
            return str(response.status_code)
        reply = response.json()
        if "choices" in reply:
            reply = [
                choice["message"]["content"] if "message" in choice else choice["text"] for choice in reply["choices"]
            ]
        return "equal" if reply == ask.expected else "different"
    num_events = rng.randint(1, 5) if rng.random() < _LEAVING else None
    texts = [""] * len(ask.expected)
    async with http.stream("POST", ask.path, json=ask.body) as response:
        if response.status_code != 200:
            return str(response.status_code)
        async for line in response.aiter_lines():
            if not line:
                continue
            if line == "data: [DONE]":
                return "equal" if texts == ask.expected else "different"
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            if num_events is not None and (num_events := num_events - 1) == 0:
                return "left"
    return "lost"


def _metrics(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return {name: float(value) for name, value in re.findall(r"^patarm_engine_(\w+) (\S+)$", text, re.M)}


def _settled_metrics(url: str) -> dict[str, float]:
    """When the engine has noticed the last client that left; or as it stands after ten seconds."""
    for _ in range(100):
        metrics = _metrics(url)
        if not (metrics["running_rows"] or metrics["waiting_requests"] or metrics["open_requests"]):
            break
        time.sleep(0.1)
    return metrics


def _table(record: dict) -> str:
    other = ", ".join(f"{status}: {count}" for status, count in record["other"].items()) or "0"
    rows = {
        "replies, equal to the engine's offline": record["equal"],
        "replies that differ": record["different"],
        "lost": record["lost"],
        f"refused with 429 (more than {record['max_open_requests']} open)": record["refused_429"],
        "errors other than 429": other,
        "streams that the client left": record["left"],
        "pages missing in the end": f"{record['pages_missing']:.0f}",
        "replies per second": f"{record['equal'] / record['seconds']:.1f}",
        "tokens decoded per second": f"{record['decoded_tok_per_s']:.0f}",
        "seconds to a whole reply: median, 95 %, most": (
            f"{record['latency_p50_s']:.2f}, {record['latency_p95_s']:.2f}, {record['latency_max_s']:.2f}"
        ),
    }
    head = [f"| {record['clients']} clients for {record['seconds']:g} s | |", "|---|---:|"]
    return "\n".join([*head, *(f"| {name} | {value} |" for name, value in rows.items())])
