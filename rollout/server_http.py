"""What the server needs of HTTP, as ASGI has it: bodies in, replies and event streams out, clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]
Headers = tuple[tuple[str, str], ...]

_FAREWELL_S = 5.0  # for the last words to a client that may not be reading any more


class ApiError(Exception):
    """A reply that is an error, in the form that OpenAI's clients read."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Headers = ()
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ClientGone(Exception):
    """The client has closed the connection."""


class Reply:
    """Answers one request, with a whole body or with server-sent events. `status` is None until it begins."""

    def __init__(self, send: Send) -> None:
        self._send, self._is_streaming = send, False
        self.status: int | None = None

    async def json(self, value: dict, status: int = 200, headers: Headers = ()) -> None:
        await self.text(_to_json(value), status, "application/json", headers)

    async def text(self, text: str, status: int, content_type: str, headers: Headers = ()) -> None:
        body = text.encode()
        await self._start(status, (("content-type", content_type), ("content-length", str(len(body))), *headers))
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, value: dict | str) -> None:
        """One event of a stream, which begins with the first."""
        if self.status is None:
            self._is_streaming = True
            await self._start(
                200, (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
            )
        data = value if isinstance(value, str) else _to_json(value)
        await self._send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

    async def end(self) -> None:
        """The end of a stream."""
        self._is_streaming = False
        await self._send({"type": "http.response.body"})

    async def fail(self, error: ApiError) -> None:
        """Tells an error: as the reply, or as the last event of a stream. A whole reply under way stays as it is."""
        if self.status is None:
            await self.json(error.body, error.status, error.headers)
            return
        if not self._is_streaming:
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self.event(error.body)
                await self.end()
        except TimeoutError:
            pass  # nobody reads; the server library closes the connection

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


def header(scope: Scope, name: str) -> str:
    """The value of a request header, empty if there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()), "")


async def read_body(scope: Scope, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """The body of a request.

    Raises:
        ApiError: too large, too slow, or compressed.
        ClientGone: the client left before its end.
    """
    encoding, length = header(scope, "content-encoding"), header(scope, "content-length")
    if encoding not in ("", "identity"):
        raise ApiError(415, f"content-encoding {encoding} is not read; send the body as it is")
    too_large = ApiError(413, f"the body is larger than {max_bytes} bytes", headers=(("connection", "close"),))
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        slow = f"the body did not come within {timeout_s:g} s"
        raise ApiError(408, slow, headers=(("connection", "close"),)) from None


async def unless_gone(receive: Receive, work: Coroutine) -> None:
    """Does `work`; if the client leaves before it is done, `work` is cancelled and ClientGone raised."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientGone
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _to_json(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
