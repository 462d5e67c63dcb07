"""The HTTP server: a judge and its engine for any client. An ASGI application, run by uvicorn.

    POST /v1/chat/completions, /v1/completions   as OpenAI's, see openai_request.py
    POST /score       {"prompt", "response", "task"?, "n"?, "seed"?, "temperature"?, "max_tokens"?}
    POST /compare     {"prompt", "response_a", "response_b", "method"?, …}: mean, majority or pairwise
    GET  /v1/models, /health, /metrics

Every mistake of a client gets a status from 400 on and a JSON body that says what is wrong; the server goes on.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

from patarm_core.fields import FieldError, Fields, read_object
from rollout.judge import Judge
from rollout.openai_reply import Teller
from rollout.openai_request import Kind, Limits, read_generation
from rollout.questions import Method, Question, read_task
from rollout.server_http import ApiError, ClientGone, Receive, Reply, Scope, Send, header, read_body, unless_gone
from rollout.server_metrics import CONTENT_TYPE, Metrics
from rollout.server_worker import Delta, EngineFailed, EngineWorker, QueueFull, Refused

logger = logging.getLogger("rollout.server")

_BODY_S = 30.0  # for a client to send its body
_JUDGE_FIELDS = {"model", "prompt", "task", "n", "seed", "temperature", "max_tokens"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """What the server allows."""

    model_name: str
    max_open_requests: int = 256  # running and waiting; one more is told to come again (429)
    max_body_bytes: int = 1 << 20
    max_n: int = 64  # completions or judgments of one request
    request_timeout_s: float = 600.0
    api_key: str = field(default="", repr=False)  # empty: none is asked for

    def __post_init__(self) -> None:
        for name in ("max_open_requests", "max_body_bytes", "max_n", "request_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")


class App:
    """The ASGI application. Its engine's thread runs from the lifespan's startup to its shutdown."""

    def __init__(self, judge: Judge, config: ServerConfig) -> None:
        self.judge, self.config = judge, config
        self.worker, self.metrics = EngineWorker(judge.engine, config.max_open_requests), Metrics()
        context_tokens = judge.engine.decoder.config.max_position_embeddings
        self._limits = Limits(context_tokens, config.max_n, judge.max_completion_tokens)
        self._model = {"id": config.model_name, "object": "model", "created": int(time.time()), "owned_by": "patarm"}
        self._routes: dict[str, tuple[str, Callable]] = {
            "/v1/chat/completions": ("POST", partial(self._generate, "chat")),
            "/v1/completions": ("POST", partial(self._generate, "completion")),
            "/score": ("POST", self._score),
            "/compare": ("POST", self._compare),
            "/v1/models": ("GET", self._models),
            f"/v1/models/{config.model_name}": ("GET", self._one_model),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        reply, started = Reply(send), time.perf_counter()
        try:
            await self._respond(scope, receive, reply)
        except ApiError as error:
            await reply.fail(error)
        except ClientGone:
            reply.status = 499
        except asyncio.CancelledError:  # the grace time is over
            await reply.fail(ApiError(503, "the server is shutting down"))
            raise
        except Exception:
            logger.exception("%s %s", scope["method"], scope["path"])
            await reply.fail(ApiError(500, "internal error; the server's log has the details"))
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self.metrics.observe(route, reply.status or 500, time.perf_counter() - started)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.worker.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.worker.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _respond(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        path, config = scope["path"], self.config
        if path != "/health" and config.api_key:
            expected = f"Bearer {config.api_key}".encode()
            if not hmac.compare_digest(header(scope, "authorization").encode(), expected):
                challenge = (("www-authenticate", "Bearer"), ("connection", "close"))
                raise ApiError(401, "missing or wrong API key", code="invalid_api_key", headers=challenge)
        if path not in self._routes:
            raise ApiError(404, f"no such path; there are {', '.join(self._routes)}")
        method, handle = self._routes[path]
        if scope["method"] != method:
            raise ApiError(405, f"{scope['method']} is not allowed here; use {method}", headers=(("allow", method),))
        if method == "GET":
            await handle(reply)
            return
        body = await read_body(scope, receive, config.max_body_bytes, _BODY_S)
        try:
            async with asyncio.timeout(config.request_timeout_s):
                await unless_gone(receive, handle(body, reply))
        except TimeoutError:
            raise ApiError(504, f"not done within {config.request_timeout_s:g} s") from None
        except QueueFull as error:
            raise ApiError(429, str(error), code="queue_full", headers=(("retry-after", "1"),)) from None
        except Refused as error:
            raise ApiError(400, str(error)) from None
        except EngineFailed as error:
            raise ApiError(500, str(error)) from None

    async def _generate(self, kind: Kind, body: bytes, reply: Reply) -> None:
        tokenizer = self.judge.engine.tokenizer
        generation = await self._read(body, lambda fields: read_generation(kind, fields, tokenizer, self._limits))
        if len(generation.contexts) > self.config.max_open_requests:
            raise ApiError(
                400, f"prompt: has {len(generation.contexts)} entries; at most {self.config.max_open_requests}"
            )
        teller = Teller(generation, tokenizer, self.config.model_name)
        with self.worker.job(generation.pairs, generation.is_streaming) as job:
            if not generation.is_streaming:
                await reply.json(teller.whole(await job.completions()))
                return
            event = await job.next()  # an error here is told with its status, later ones as an event
            for chunk in teller.first():
                await reply.event(chunk)
            while isinstance(event, Delta):
                for chunk in teller.part(event):
                    await reply.event(chunk)
                event = await job.next()
            for chunk in teller.last(event):
                await reply.event(chunk)
            await reply.event("[DONE]")
            await reply.end()

    async def _score(self, body: bytes, reply: Reply) -> None:
        def read(fields: Fields) -> Question:
            fields.only(_JUDGE_FIELDS | {"response"})
            prompt, response, task = fields.prompt("prompt"), fields.text("response"), self._task(fields)
            return self._judge(fields).ask(prompt, response, task, "the request")

        await self._answer(await self._read(body, read), reply)

    async def _compare(self, body: bytes, reply: Reply) -> None:
        def read(fields: Fields) -> Question:
            fields.only(_JUDGE_FIELDS | {"response_a", "response_b", "method"})
            prompt, a, b = fields.prompt("prompt"), fields.text("response_a"), fields.text("response_b")
            method, task = fields.one_of("method", get_args(Method), "mean"), self._task(fields)
            return self._judge(fields).ask_to_compare(prompt, a, b, task, method, "the request")

        await self._answer(await self._read(body, read), reply)

    async def _answer(self, question: Question, reply: Reply) -> None:
        with self.worker.job(list(zip(question.contexts, question.params, strict=True))) as job:
            completions = await job.completions()
        await reply.json(question.read(completions).record())

    async def _read(self, body: bytes, read: Callable):
        """Reads a body in another thread: a long text takes a while to become tokens."""

        def work():
            fields = Fields(read_object(body))
            if fields.text("model", self.config.model_name) != self.config.model_name:
                message = f"model: no such model; there is {self.config.model_name}"
                raise ApiError(404, message, "model", "model_not_found")
            return read(fields)

        try:
            return await asyncio.to_thread(work)
        except ValueError as error:
            raise ApiError(400, str(error), error.field if isinstance(error, FieldError) else None) from None

    def _task(self, fields: Fields) -> str:
        return read_task(fields, self.judge.contexts.book.tasks)

    def _judge(self, fields: Fields) -> Judge:
        """The judge as a request wants it; without a seed of its own, the same question gets the same answer."""
        return replace(
            self.judge,
            num_votes=fields.whole("n", 1, self.config.max_n, self.judge.num_votes),
            seed=fields.whole("seed", 0, (1 << 64) - 1, self.judge.seed),
            temperature=fields.number("temperature", 0, 2, self.judge.temperature),
            max_completion_tokens=fields.whole("max_tokens", 1, 1 << 31, self.judge.max_completion_tokens),
        )

    async def _models(self, reply: Reply) -> None:
        await reply.json({"object": "list", "data": [self._model]})

    async def _one_model(self, reply: Reply) -> None:
        await reply.json(self._model)

    async def _health(self, reply: Reply) -> None:
        is_healthy = self.worker.is_healthy
        await reply.json({"status": "ok" if is_healthy else "failing"}, 200 if is_healthy else 503)

    async def _metrics(self, reply: Reply) -> None:
        await reply.text(self.metrics.text(self.worker), 200, CONTENT_TYPE)
