"""`rollout/main.py serve`: the server on a port, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
from pathlib import Path

from rollout.contexts import read_text
from rollout.options import load_judge
from rollout.server import App, ServerConfig
from rollout.threads import made_aside


def run_serve(options: argparse.Namespace) -> None:
    """Serves until it is told to stop; then takes no more requests and gives the open ones `--grace` seconds."""
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise ValueError("serving needs uvicorn: pip install -e '.[serve]', where patarm was checked out") from None

    config = ServerConfig(
        model_name=options.model_name or Path(options.model).resolve().name,
        max_open_requests=options.max_open_requests, max_body_bytes=options.max_body_bytes, max_n=options.max_n,
        request_timeout_s=options.request_timeout, api_key=_api_key(options.api_key_file),
    )  # fmt: skip
    listener = _bind(options.host, options.port)
    app = App(made_aside(lambda: load_judge(options)), config)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", ws="none", http="h11", loop="asyncio",
        server_header=False, timeout_graceful_shutdown=options.grace,
    )  # fmt: skip
    server = uvicorn.Server(settings)
    # From here on until uvicorn listens to them, and again when it has shut down: it raises the signal once more, and
    # for us that was a clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    host, port = listener.getsockname()[:2]
    print(f"serving {config.model_name} on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    server.run(sockets=[listener])
    print("stopped", flush=True)


def _api_key(file: str) -> str:
    if not file:
        return ""
    key = read_text(file).strip()
    if not key or not key.isascii() or len(key.split()) != 1:
        raise ValueError(f"--api-key-file {file}: expected one word of ASCII characters")
    return key


def _bind(host: str, port: int) -> socket.socket:
    """The port is taken before the model is loaded, and listens after."""
    if not 0 <= port <= 65535:  # the resolver would take it modulo 2^16
        raise ValueError(f"--port {port}: expected a number from 0 to 65535")
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return listener
