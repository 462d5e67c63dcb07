"""One chat completion over HTTP, with retries: the standard library's client, and a name for whatever goes wrong.

Of what servers and what stands before them send, nothing is taken for a judgment but a completion's text.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from eval.judges.rate_limit import RateLimit

MAX_REPLY_BYTES = 16 << 20
MOST_PAUSE_S = 600.0  # of Retry-After: a server that asks for more is asked again after this
_HOPELESS = {401: "the key is not accepted", 403: "access is refused", 404: "there is no such path or model"}
_RETRIED = frozenset({408, 409, 425, 429})


class EndpointError(ValueError):
    """No question can be answered by this endpoint as it is called."""


class ReplyError(Exception):
    """One request has no usable reply. `name` is what is counted."""

    def __init__(self, name: str, detail: str, is_retried: bool, pause_s: float | None = None) -> None:
        super().__init__(f"{name}: {detail}" if detail else name)
        self.name, self.is_retried, self.pause_s = name, is_retried, pause_s


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    is_cut: bool  # it ran into its limit of tokens
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    max_tries: int = 6
    first_s: float = 1.0  # doubles each time; the wait is drawn from the upper half
    most_s: float = 60.0

    def wait_s(self, tries: int, jitter: random.Random) -> float:
        """After this many tries have failed."""
        return min(self.most_s, self.first_s * 2.0 ** min(tries - 1, 60)) * (0.5 + jitter.random() / 2)


class ChatClient:
    """`POST {url}/chat/completions`. Threads may share one: every try has a connection of its own."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout_s: float = 120.0,
        retries: Retries | None = None,
        limit: RateLimit | None = None,
        jitter_seed: int | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--endpoint {url}: expected http://… or https://…, such as https://api.openai.com/v1")
        try:
            self._address = (parts.hostname, parts.port)
        except ValueError:
            raise ValueError(f"--endpoint {url}: the port is not a number from 0 to 65535") from None
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.path = f"{path or '/v1'}/chat/completions"
        self._api_key, self.timeout_s = api_key, timeout_s
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        if self._tls:
            self._tls.set_alpn_protocols(["http/1.1"])
        self._retries, self._limit = retries or Retries(), limit or RateLimit(None)
        self._jitter = random.Random(jitter_seed)

    def complete(
        self, body: Mapping, sleep: Callable[[float], None] = time.sleep, failed: Callable[[str], None] = lambda _: None
    ) -> Reply:
        """The reply to one request, after as many tries as it takes.

        Args:
            sleep: waits between tries and for a place under the rate limit; may raise to give up.
            failed: told the name of each failure that is followed by another try.

        Raises:
            ReplyError: the last try's failure.
            EndpointError: what every request would meet.
        """
        data = json.dumps(body).encode()
        for tries in range(1, self._retries.max_tries + 1):
            if (delay := self._limit.delay_s()) > 0:
                sleep(delay)
            try:
                return read_reply(*self._post(data))
            except ReplyError as error:
                if error.pause_s is not None:
                    self._limit.pause(min(error.pause_s, MOST_PAUSE_S))
                if not error.is_retried or tries == self._retries.max_tries:
                    raise
                failed(error.name)
                if not error.pause_s:  # "Retry-After: 0" is no reason to use up all tries at once
                    sleep(self._retries.wait_s(tries, self._jitter))
        raise AssertionError("at least one try is made")

    def _post(self, data: bytes) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        end = time.monotonic() + self.timeout_s
        connection = (
            http.client.HTTPSConnection(*self._address, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(*self._address)
        )
        try:
            connection.sock = _connected(connection.host, connection.port, self._tls, end)
            with _ends_after(connection.sock, end - time.monotonic()):
                connection.request("POST", self.path, data, headers)
                response = connection.getresponse()
                body = _all(response)
            if self._api_key:  # some servers repeat a key that they refuse
                body = body.replace(self._api_key.encode(), b"(key)")
            return response.status, response.headers, body
        except TimeoutError:
            raise ReplyError("timeout", f"no reply within {self.timeout_s:g} s", True) from None
        except ssl.SSLCertVerificationError as error:
            raise EndpointError(f"the endpoint's certificate is not accepted: {error.verify_message}") from None
        except socket.gaierror as error:
            raise ReplyError("connection", f"{self._address[0]} is not found: {error.strerror}", True) from None
        except (OSError, http.client.HTTPException) as error:
            raise ReplyError("connection", f"{type(error).__name__} {error}".strip(), True) from None
        finally:
            connection.close()


def _connected(host: str, port: int, tls: ssl.SSLContext | None, end: float) -> socket.socket:
    """By `end`, of which each address of the host has an equal part. `HTTPConnection.connect` gives all of the time to
    each of them and to the handshake once more, so that a host whose first address is dead has none left for a reply.

    Looking the name up takes what the system's resolver allows itself.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for num_left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        connected = None
        try:
            connected = socket.socket(family, kind, protocol)  # of a family that this machine may not have
            connected.settimeout(_left_s(end) / num_left)
            connected.connect(address)
            break
        except OSError:
            if connected:
                connected.close()
            if num_left == 1:
                raise
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.settimeout(_left_s(end))  # of the handshake as a whole
    return tls.wrap_socket(connected, server_hostname=host) if tls else connected


def _left_s(end: float) -> float:
    return max(0.001, end - time.monotonic())


@contextmanager
def _ends_after(connected: socket.socket, seconds: float) -> Iterator[None]:
    """Within, TimeoutError after so long, however bytes drip: a socket's own timeout is that of each read."""
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        with suppress(OSError):
            # Whoever reads finds the end. Not by the TLS socket's own method: it takes TLS off first, and what another
            # thread is just sending, the key with it, would go out as plain text.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, seconds), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException, ReplyError):
        if is_over.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if is_over.is_set():
        raise TimeoutError


def _all(response: http.client.HTTPResponse) -> bytes:
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise ReplyError("malformed", f"a reply of more than {MAX_REPLY_BYTES >> 20} MiB", False)
    if response.length:  # read1 tells no early end
        raise ReplyError("connection", f"closed with {response.length} bytes to come", True)
    return b"".join(parts)


def read_reply(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """The completion in a reply.

    Raises:
        ReplyError, EndpointError: there is none; a request may be worth another try.
    """
    if status != 200:
        raise _refusal(status, headers, body)
    is_html = "html" in (headers.get("Content-Type") or "") or body.lstrip()[:1] == b"<"
    if is_html:
        raise ReplyError("html", "a web page in place of a completion", True)
    if not body.strip():
        raise ReplyError("empty", "no body", True)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise ReplyError("malformed", f"not JSON: {_excerpt(body)}", True) from None
    match data:
        case {"choices": [{"message": {"content": str() | None as text} as message} as choice, *_]}:
            reason = choice.get("finish_reason")
            if message.get("refusal") or reason == "content_filter":
                raise ReplyError("refused", _excerpt(message.get("refusal") or "by the endpoint's filter"), False)
            if not (text or "").strip() and reason != "length":
                raise ReplyError("empty", "a completion without text", True)
            usage = data.get("usage")
            usage = usage if isinstance(usage, dict) else {}
            counts = (usage.get(f"{side}_tokens") for side in ("prompt", "completion"))
            return Reply(text or "", reason == "length", *(n if type(n) is int and n >= 0 else None for n in counts))
        case {"error": error}:  # some gateways send their errors as successes
            raise ReplyError("malformed", f"an error in place of a completion: {_excerpt(error)}", True)
    raise ReplyError("malformed", f"no choices[0].message.content: {_excerpt(body)}", True)


def _refusal(status: int, headers: Mapping[str, str], body: bytes) -> Exception:
    detail = _excerpt(body)
    if status in _HOPELESS:
        return EndpointError(f"the endpoint says {status}, {_HOPELESS[status]}: {detail}")
    if 300 <= status < 400:
        return EndpointError(
            f"the endpoint says {status} and points to {headers.get('Location')!r}; name that address if it is right"
        )
    is_retried = status in _RETRIED or status >= 500
    pause_s = retry_after_s(headers.get("Retry-After")) if is_retried else None
    return ReplyError(f"http {status}", detail, is_retried, pause_s)


def retry_after_s(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None where it says neither."""
    value = (value or "").strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return min(float(value), 1e9)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _excerpt(value: object) -> str:
    """A line of at most 200 characters of what a server said."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return " ".join(text[:2000].split())[:200]
