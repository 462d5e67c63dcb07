"""`rollout/main.py serve` as a process: it comes up, stops cleanly, and tells what keeps it from coming up."""

import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollout.main import main
from tests.live_server import wait_until

httpx = pytest.importorskip("httpx", reason="the extra `test` has it")
pytest.importorskip("uvicorn", reason="the extra `serve` has it")

DOOR = Path(__file__).parents[2] / "rollout" / "main.py"
BODY = {"prompt": "Say something about tea.", "max_tokens": 100, "n": 8, "stream": True, "temperature": 2.0}


@contextmanager
def served(model, *options: str):
    """The process and its URL, once it answers."""
    command = [sys.executable, str(DOOR), "serve", "--model", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), process.stderr.read()
        url = line.split()[-1]
        wait_until(lambda: is_up(url))
        yield process, url
    finally:
        process.kill()
        process.wait()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_signal_stops_it_once_open_requests_are_done(tiny_judge, tmp_path):
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    with served(tiny_judge, "--model-name", "judge", "--api-key-file", str(key)) as (process, url):
        headers = {"authorization": "Bearer s3cret"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"] == "judge"
        with httpx.stream("POST", f"{url}/v1/completions", json=BODY, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "stopped\n", "")
        assert not is_up(url)


@pytest.mark.slow
def test_a_signal_right_after_the_address_is_not_lost(tiny_judge):
    """It may come before the server library listens to any."""
    command = [sys.executable, str(DOOR), "serve", "--model", str(tiny_judge), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("serving ")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0 and process.stdout.read() == "stopped\n"
        finally:
            process.kill()


@pytest.mark.slow
def test_requests_that_outlast_the_grace_time_are_told(tiny_judge):
    """A body that never comes keeps its connection open; the process ends all the same."""
    with served(tiny_judge, "--grace", "1") as (process, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
            timer = threading.Timer(0.3, process.send_signal, [signal.SIGINT])
            timer.start()
            reply = b"".join(iter(lambda: connection.recv(4096), b""))
        assert b"503" in reply and b"the server is shutting down" in reply
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "99999"], "--port 99999"),
        (["--host", "nowhere.invalid"], "--host nowhere.invalid"),
        (["--api-key-file", "nowhere"], "nowhere: no such file"),
        (["--max-n", "0"], "max_n=0 must be positive"),
        (["--max-completion-tokens", "0"], "--max-completion-tokens must be at least 1, got 0"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_keeps_it_from_coming_up_is_one_line(tiny_judge, capsys, options, message):
    assert main(["serve", "--model", str(tiny_judge), "--port", "0", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_without_uvicorn_it_says_how_to_get_it(tiny_judge, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--model", str(tiny_judge)]) == 1
    assert capsys.readouterr().err.startswith("error: serving needs uvicorn: pip install -e '.[serve]'")


def test_a_port_that_is_taken_is_told(tiny_judge, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--model", str(tiny_judge), "--port", str(taken.getsockname()[1])]) == 1
    assert "Address already in use" in capsys.readouterr().err
