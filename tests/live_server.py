"""A server on a port of this machine, in a thread of the test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from rollout.judge import Judge
from rollout.server import App, ServerConfig


@contextmanager
def live_server(judge: Judge, **config) -> Iterator[SimpleNamespace]:
    """Gives `url`, `app` and an `httpx` client; the server is down at the end."""
    import httpx
    import uvicorn

    app = App(judge, ServerConfig(**{"model_name": "tiny"} | config))
    settings = uvicorn.Config(app, port=0, log_level="warning", lifespan="on", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30) as client:
            yield SimpleNamespace(url=url, app=app, client=client)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(is_so, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
