"""The server as clients meet it: OpenAI's own, plain HTTP, and those that send nonsense, leave or ask for too much."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from patarm_core.rubrics import default_rubrics
from rollout.contexts import ContextBuilder, PromptConfig
from rollout.judge import Judge
from rollout.params import SamplingParams
from tests import models
from tests.fake_engine import FakeEngine
from tests.live_server import live_server, wait_until

httpx = pytest.importorskip("httpx", reason="the extra `test` has it")
openai = pytest.importorskip("openai", reason="the extra `test` has it")
pytest.importorskip("uvicorn", reason="the extra `serve` has it")

TOKENIZER = models.tokenizer()
MESSAGES = [{"role": "user", "content": "Why?"}]
CHAT, TEXT, SCORE, COMPARE = "/v1/chat/completions", "/v1/completions", "/score", "/compare"
BODIES = {
    CHAT: {"messages": MESSAGES}, TEXT: {"prompt": "Why?"}, SCORE: {"prompt": "Why?", "response": "So."},
    COMPARE: {"prompt": "Why?", "response_a": "So.", "response_b": "Because."},
}  # fmt: skip


def says(context, params, sample) -> str:
    """What the fake engine writes: long or short by the prompt, with a character of four bytes."""
    text = TOKENIZER.decode(context)
    if "answer" in text.lower() and "<response" in text:
        return f"so <answer>{sample + 5}</answer>"
    return "very " * 200 if "long" in text else f"the answer 😀 is {sample}, then <answer>7</answer> and more"


@pytest.fixture
def fake():
    """Starts servers over an engine that does as it is told: `fake(step_s=…, max_open_requests=…)`."""
    with ExitStack() as stack:

        def start(step_s: float = 0.0, limit: int = 4096, **config):
            engine = FakeEngine(TOKENIZER, says, limit, step_s)
            judge = Judge(
                engine=engine, contexts=ContextBuilder(TOKENIZER, PromptConfig(template="bare"), default_rubrics())
            )
            server = stack.enter_context(live_server(judge, **config))
            server.engine = engine
            return server

        yield start


@pytest.fixture(scope="module")
def real(tiny_judge, tiny_files, offline):
    judge = Judge.from_pretrained(
        tiny_judge, rubrics="primary", template="bare", rubrics_file=str(tiny_files["prompt.rubrics_file"]),
        max_completion_tokens=24,
    )  # fmt: skip
    with live_server(judge) as server:
        server.judge = replace(judge, engine=offline)  # the worker's engine is no one else's
        server.openai = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        yield server


@pytest.fixture(scope="module")
def offline(tiny_judge):
    from rollout.engine import Engine

    return Engine.from_pretrained(tiny_judge)


def client_of(server, **settings):
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": "-", "max_retries": 0} | settings)


def events_of(response) -> list[dict]:
    """The events of a stream, less the [DONE] that ends it."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


# OpenAI's client


def test_a_chat_is_that_of_the_engine_for_the_same_seed(real, offline):
    context = offline.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    (completions,) = offline.generate([context], SamplingParams(n=3, max_tokens=12, temperature=0.9, seed=11))
    settings = {"model": "tiny", "messages": MESSAGES, "n": 3, "max_tokens": 12, "temperature": 0.9, "seed": 11}
    answer = real.openai.chat.completions.create(**settings, logprobs=True)
    assert [choice.message.content for choice in answer.choices] == [c.text for c in completions]
    assert [choice.finish_reason for choice in answer.choices] == [c.finish_reason for c in completions]
    for choice, completion in zip(answer.choices, completions, strict=True):
        assert [entry.logprob for entry in choice.logprobs.content] == completion.logprobs.tolist()
        assert b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content).decode(errors="replace")
    num_sampled = sum(len(c.token_ids) for c in completions)
    assert answer.usage.completion_tokens == num_sampled
    assert answer.usage.total_tokens == num_sampled + len(offline.tokenizer.encode(context, add_special_tokens=False))

    chunks = list(real.openai.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == answer.usage and chunks[-1].choices == []
    for choice in answer.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]


def test_completions_of_several_prompts_are_those_of_the_engine(real, offline):
    prompts = ["Say tea", "Say rain"]
    expected = offline.generate(prompts, SamplingParams(n=2, max_tokens=9, top_p=0.9, seed=4))
    settings = {"model": "tiny", "n": 2, "max_tokens": 9, "top_p": 0.9, "seed": 4}
    answer = real.openai.completions.create(prompt=prompts, **settings, logprobs=0)
    flat = [completion for request in expected for completion in request]
    assert [choice.text for choice in answer.choices] == [c.text for c in flat]
    assert [choice.logprobs.token_logprobs for choice in answer.choices] == [c.logprobs.tolist() for c in flat]
    tokens = [offline.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    again = real.openai.completions.create(prompt=tokens, **settings)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]
    texts = [""] * 4
    for chunk in real.openai.completions.create(prompt=prompts, **settings, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in answer.choices]


def test_without_a_seed_answers_differ(real):
    answers = {
        real.openai.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12).choices[0].message.content
        for _ in range(6)
    }
    assert len(answers) > 1


def test_many_clients_at_once_get_what_each_would_get_alone(real):
    def ask(seed: int) -> str:
        answer = real.openai.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, seed=seed)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(16)))
    assert together == [ask(seed) for seed in range(16)]


def test_models_are_listed_and_others_not_found(real):
    assert [model.id for model in real.openai.models.list()] == ["tiny"]
    assert real.openai.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        real.openai.chat.completions.create(model="other", messages=MESSAGES)


def test_the_client_raises_what_the_server_refuses(fake):
    server = fake(api_key="secret")
    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
        client_of(server).models.list()
    client = client_of(server, api_key="secret")
    assert client.models.list().data[0].id == "tiny"
    with pytest.raises(openai.BadRequestError, match="tools: is a list; not supported"):
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
        )


# What a reply holds


def test_the_text_ends_before_the_stop_string(fake):
    client = client_of(fake())
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=2, stop=["</answer>", " and"], logprobs=True
    )
    assert [choice.message.content for choice in answer.choices] == [
        "the answer 😀 is 0, then <answer>7", "the answer 😀 is 1, then <answer>7"
    ]  # fmt: skip
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.choices[0].logprobs.content[-1].token == "</answer>"  # sampled, though not in the text
    short = client.completions.create(model="tiny", prompt="Why?", max_tokens=3).choices[0]
    assert short.finish_reason == "length"


@pytest.mark.parametrize("stop", [None, "</answer>", ["swer>7"], ["😀 is"], ["never"]])
def test_a_stream_tells_whole_characters_and_no_part_of_a_stop_string(fake, stop):
    server = fake()
    body = BODIES[CHAT] | {"stop": stop, "n": 2, "seed": 1}
    whole = server.client.post(CHAT, json=body).json()
    with server.client.stream("POST", CHAT, json=body | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = events_of(response)
    for choice in whole["choices"]:
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        texts = [part["delta"].get("content", "") for part in parts]
        assert "".join(texts) == choice["message"]["content"] and "\ufffd" not in "".join(texts)
        assert len([text for text in texts if text]) > 2


def test_streamed_logprobs_are_those_of_the_whole_reply(fake):
    server = fake()
    for path, extra in ((CHAT, {"logprobs": True}), (TEXT, {"logprobs": 0, "max_tokens": 99})):
        body = BODIES[path] | extra | {"stop": "</answer>"}
        whole = server.client.post(path, json=body).json()["choices"][0]["logprobs"]
        with server.client.stream("POST", path, json=body | {"stream": True}) as response:
            parts = [chunk["choices"][0]["logprobs"] for chunk in events_of(response)]
        parts = [part for part in parts if part]
        key = "content" if path == CHAT else "token_logprobs"
        assert [entry for part in parts for entry in part[key]] == whole[key]
        assert len(parts) > 3


def test_text_offsets_say_where_tokens_begin(fake):
    answer = fake().client.post(TEXT, json=BODIES[TEXT] | {"max_tokens": 99, "logprobs": 0}).json()["choices"][0]
    text, told = answer["text"], answer["logprobs"]
    ends = told["text_offset"][1:] + [len(text)]
    for token, start, end in zip(told["tokens"], told["text_offset"], ends, strict=True):
        assert token == text[start:end] or "\ufffd" in token


def test_a_score_is_that_of_the_judge(real):
    body = {"prompt": "Say something about tea.", "response": "A good tea.", "n": 4, "seed": 3}
    judge = replace(real.judge, num_votes=4, seed=3)
    (expected,) = judge.judgments([body["prompt"]], [body["response"]])
    first = real.client.post(SCORE, json=body)
    assert first.status_code == 200 and first.json() == expected.record()
    messages = [{"role": "user", "content": body["prompt"]}]
    assert real.client.post(SCORE, json=body | {"prompt": messages}).json() == expected.record()


@pytest.mark.parametrize("method", ["mean", "majority", "pairwise"])
def test_a_comparison_is_that_of_the_judge(real, method):
    a, b = "A good tea.", "A bad tea."
    (expected,) = replace(real.judge, num_votes=3).comparisons(["Say tea."], [a], [b], method=method)
    body = {"prompt": "Say tea.", "response_a": a, "response_b": b, "method": method, "n": 3}
    assert real.client.post(COMPARE, json=body).json() == expected.record()


def test_a_response_without_a_valid_score_has_null(fake, monkeypatch):
    server = fake()
    monkeypatch.setattr(server.engine, "say", lambda *_: "no idea")
    assert server.client.post(SCORE, json=BODIES[SCORE]).json() == {
        "score": None, "scores": [None], "num_valid": 0, "judgments": ["no idea"], "errors": ["tags"],
    }  # fmt: skip


# Mistakes of clients

MISTAKES = [
    (CHAT, {"messages": None}, "messages: is null; expected a list"),
    (CHAT, {"messages": []}, "messages: is empty"),
    (CHAT, {"messages": [{"role": 5, "content": "x"}]}, "messages[0].role: is 5; expected one of system,"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: is \"tool\"; tools are not supported"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type: is"),
    (CHAT, {"temprature": 1}, "temprature: unknown field"),
    (CHAT, {"n": 0}, "n: is 0; expected a whole number from 1 to 64"),
    (CHAT, {"n": 65}, "n: is 65; expected"),
    (CHAT, {"n": True}, "n: is true; expected"),
    (CHAT, {"temperature": -1}, "temperature: is -1; expected a number from 0 to 2"),
    (CHAT, {"temperature": float("nan")}, "temperature: is nan"),
    (CHAT, {"top_p": 0}, "sampling top_p=0.0 must be in (0, 1]"),
    (CHAT, {"seed": -1}, "seed: is -1"),
    (CHAT, {"seed": 1 << 64}, "seed: is 18446744073709551616"),
    (CHAT, {"stop": ["a"] * 5}, "stop: expected a text that is not empty, or a list of at most 4"),
    (CHAT, {"stop": ""}, "stop: expected"),
    (CHAT, {"stop": [1]}, "stop: expected"),
    (CHAT, {"max_tokens": 0}, "max_tokens: is 0"),
    (CHAT, {"max_tokens": 5000}, "asks for 5000 more; the model's limit is 4096"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}, "asks for 1 more; the model's limit is 4096"),
    (CHAT, {"logprobs": 1}, "logprobs: is 1; expected true or false"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs: is 3; not supported"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format: is an object; not supported"),
    (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty: is 0.5; not supported"),
    (CHAT, {"stream": "yes"}, 'stream: is "yes"; expected true or false'),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options: expected"),
    (CHAT, {"stream": True, "stream_options": {"x": 1}}, "stream_options.x: unknown field"),
    (CHAT, {"model": 3}, "model: is a number; expected a text"),
    (TEXT, {"prompt": ""}, "prompt: is empty"),
    (TEXT, {"prompt": []}, "prompt: is a list; expected"),
    (TEXT, {"prompt": {}}, "prompt: is an object; expected"),
    (TEXT, {"prompt": ["a", 3]}, "prompt[1]: is a number; expected a text"),
    (TEXT, {"prompt": ["a"] * 300}, "prompt: has 300 entries; at most 256"),
    (TEXT, {"prompt": [1, 99999]}, "token 99999"),
    (TEXT, {"prompt": [1, -1]}, "token"),
    (TEXT, {"prompt": [[1, 2], [10**30]]}, "token"),
    (TEXT, {"logprobs": 2}, "logprobs: is 2; expected a whole number from 0 to 0"),
    (TEXT, {"echo": True}, "echo: is true; not supported"),
    (SCORE, {"prompt": " "}, "prompt: is empty"),
    (SCORE, {"response": None}, "response: is null; expected a text"),
    (SCORE, {"task": "chess"}, "task: unknown task 'chess'"),
    (SCORE, {"rseponse": "x"}, "rseponse: unknown field"),
    (SCORE, {"response": "x" * 20_000}, "the request: prompt and response make a context of"),
    (SCORE, {"response": "x" * 6000}, "the request: the context has"),
    (COMPARE, {"response_b": 3}, "response_b: is a number; expected a text"),
    (COMPARE, {"method": "best"}, 'method: is "best"; expected one of mean, majority, pairwise'),
]  # fmt: skip


def is_error(response, status: int, message: str) -> bool:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert response.status_code == status and message in error["message"] and "\n" not in error["message"], error
    return True


def test_every_mistake_is_told_and_the_server_goes_on(fake):
    server = fake()
    for path, change, message in MISTAKES:
        body = json.dumps(BODIES[path] | change)
        for stream in ("", '"stream": true, ') if path in (CHAT, TEXT) and "stream" not in change else ("",):
            if "stream_options" in change and stream:
                continue
            response = server.client.post(path, content="{" + stream + body[1:])
            assert is_error(response, 400, message)
    assert response.json()["error"]["param"] == "method"
    assert server.client.post(CHAT, json=BODIES[CHAT]).status_code == 200
    assert server.engine.open == [] and server.app.worker.num_failures == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON: Expecting value"),
        (b'{"messages": ', "not JSON: "),
        (b'{"messages": "\xff"}', "not UTF-8 at byte 14"),
        (b"[" * 100_000, "not JSON: too large a value"),
        (b'{"seed": ' + b"1" * 10_000 + b"}", "not JSON: too large a value"),
        (b"[]", "is a list; expected a JSON object"),
        (b'{"prompt": "\\ud800"}', "is not valid Unicode"),
    ],
)
def test_bodies_that_are_not_an_object_are_told(real, body, message):
    path = TEXT if b"prompt" in body else CHAT
    assert is_error(real.client.post(path, content=body), 400, message)


def test_wrong_paths_methods_and_encodings_are_told(real):
    assert is_error(real.client.get("/v2/models"), 404, "no such path; there are /v1/chat/completions")
    response = real.client.get(CHAT)
    assert is_error(response, 405, "use POST") and response.headers["allow"] == "POST"
    assert is_error(real.client.post("/health"), 405, "use GET")
    assert is_error(real.client.post(CHAT, content=b"x", headers={"content-encoding": "gzip"}), 415, "gzip")


def test_a_body_too_large_is_refused_however_it_comes(fake):
    server = fake(max_body_bytes=1000)
    assert is_error(server.client.post(CHAT, json=BODIES[CHAT] | {"user": "x" * 2000}), 413, "larger than 1000 bytes")
    assert is_error(server.client.post(CHAT, content=iter([b" " * 600, b" " * 600])), 413, "larger than 1000 bytes")
    assert server.client.post(CHAT, json=BODIES[CHAT]).status_code == 200


def test_a_key_opens_all_but_the_health(fake):
    server = fake(api_key="s3cret")
    right = {"authorization": "Bearer s3cret"}
    for headers in (
        {},
        {"authorization": "s3cret"},
        {"authorization": "Bearer wrong"},
        {"authorization": b"Bearer \xff"},
    ):
        assert is_error(server.client.post(CHAT, json=BODIES[CHAT], headers=headers), 401, "missing or wrong API key")
        assert server.client.get("/metrics", headers=headers).status_code == 401
    assert server.client.post(CHAT, json=BODIES[CHAT], headers=right).status_code == 200
    assert server.client.get("/health").status_code == 200


def test_what_is_not_http_does_no_harm(real):
    host, port = real.url.removeprefix("http://").split(":")
    for nonsense in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /score HTTP/1.1\r\ncontent-length: 5\r\n\r\n{"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(nonsense)
    assert real.client.get("/health").json() == {"status": "ok"}


# Too many, too slow, gone, broken


LONG = {"messages": [{"role": "user", "content": "Be long."}]}


def test_one_request_too_many_is_told_to_come_again(fake):
    server = fake(step_s=0.02, max_open_requests=2)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(server.client.post, CHAT, json=LONG) for _ in range(2)]
        wait_until(lambda: len(server.engine.open) == 2)
        response = server.client.post(CHAT, json=BODIES[CHAT])
        assert is_error(response, 429, "2 requests are open") and response.headers["retry-after"] == "1"
        assert server.client.get("/health").status_code == 200
        server.engine.step_s = 0.0
        assert [call.result().status_code for call in running] == [200, 200]
    assert server.client.post(CHAT, json=BODIES[CHAT]).status_code == 200


def test_a_request_that_takes_too_long_is_cancelled(fake):
    server = fake(step_s=0.02, request_timeout_s=0.3)
    assert is_error(server.client.post(CHAT, json=LONG), 504, "not done within 0.3 s")
    wait_until(lambda: server.engine.open == [])
    with server.client.stream("POST", CHAT, json=LONG | {"stream": True}) as response:
        *parts, last = [line for line in response.iter_lines() if line]
        assert response.status_code == 200 and len(parts) > 3
    assert "not done within 0.3 s" in json.loads(last.removeprefix("data: "))["error"]["message"]
    wait_until(lambda: server.engine.open == [])
    with pytest.raises(openai.APIError, match="not done within"):
        list(client_of(server).chat.completions.create(model="tiny", stream=True, **LONG))


@pytest.mark.parametrize("is_streaming", [True, False])
def test_a_client_that_leaves_is_cancelled(fake, is_streaming):
    server = fake(step_s=0.02)
    with httpx.Client(base_url=server.url, timeout=0.3) as client:
        if is_streaming:
            with client.stream("POST", CHAT, json=LONG | {"stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=LONG)
    wait_until(lambda: server.engine.num_cancelled == 1 and server.app.worker.num_open == 0)
    assert 'route="/v1/chat/completions",status="499"} 1' in server.client.get("/metrics").text


def test_the_pages_of_a_client_that_leaves_return(real):
    with real.client.stream("POST", CHAT, json=BODIES[CHAT] | {"n": 8, "max_tokens": 200, "stream": True}) as response:
        next(response.iter_lines())
    wait_until(lambda: not real.app.worker.engine.has_work and real.app.worker.num_open == 0)
    wait_until(lambda: real.app.worker.stats.num_running_rows == 0)
    stats = real.app.worker.stats
    assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages


def test_a_failure_of_the_engine_is_told_and_survived(fake):
    server = fake(step_s=0.01)
    for stream in (False, True):
        server.engine.failures.append(RuntimeError("out of memory"))
        assert is_error(
            server.client.post(CHAT, json=LONG | {"stream": stream}), 500, "the engine failed: out of memory"
        )
        assert server.client.post(CHAT, json=BODIES[CHAT]).status_code == 200
    with server.client.stream("POST", CHAT, json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        server.engine.failures.append(RuntimeError("out of memory"))
        assert "out of memory" in [line for line in lines if line][-1]
    assert server.client.post(CHAT, json=BODIES[CHAT]).status_code == 200


def test_the_health_is_that_of_the_engine(fake):
    server = fake()
    assert server.client.get("/health").json() == {"status": "ok"}
    server.engine.failures += [RuntimeError("broken")] * 3
    for _ in range(3):
        assert server.client.post(CHAT, json=BODIES[CHAT]).status_code == 500
    response = server.client.get("/health")
    assert response.status_code == 503 and response.json() == {"status": "failing"}


def test_metrics_are_prometheus_text(fake):
    server = fake()
    server.client.post(CHAT, json=BODIES[CHAT])
    server.client.post(CHAT, json={})
    server.client.get("/nowhere")
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in response.text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name not in values
            values[name] = float(value)
    assert values['patarm_requests_total{route="/v1/chat/completions",status="200"}'] == 1
    assert values['patarm_requests_total{route="/v1/chat/completions",status="400"}'] == 1
    assert values['patarm_requests_total{route="other",status="404"}'] == 1
    assert values['patarm_request_seconds_bucket{route="/v1/chat/completions",le="+Inf"}'] == 2
    assert values["patarm_engine_steps_total"] == server.engine.num_steps > 0
    assert values["patarm_engine_open_requests"] == 0 and values["patarm_engine_is_healthy"] == 1
    assert {"patarm_engine_free_pages", "patarm_engine_preemptions_total"} <= values.keys()
