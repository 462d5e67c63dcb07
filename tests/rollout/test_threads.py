"""What is made aside is made in a thread that has ended, so that no OpenMP threads of it are left."""

import argparse
import threading

import pytest

from rollout import serve_command
from rollout.threads import made_aside


def test_what_is_made_aside_comes_from_a_thread_that_has_ended():
    made = made_aside(threading.current_thread)
    assert made is not threading.current_thread() and not made.is_alive()


def test_an_error_comes_out_as_it_was():
    with pytest.raises(ZeroDivisionError):
        made_aside(lambda: 1 / 0)


def test_a_server_loads_its_model_aside(monkeypatch):
    """Its engine runs in another thread than the main one, which may keep no OpenMP threads."""
    pytest.importorskip("uvicorn", reason="the extra `serve` has it")
    makers = []

    def load(options):
        makers.append(threading.current_thread())
        raise ValueError("no such model")

    monkeypatch.setattr(serve_command, "load_judge", load)
    options = argparse.Namespace(
        model="judge", model_name="", host="127.0.0.1", port=0, max_open_requests=8, max_body_bytes=1024, max_n=8,
        request_timeout=1.0, api_key_file="", grace=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no such model"):
        serve_command.run_serve(options)
    assert makers[0] is not threading.main_thread() and not makers[0].is_alive()
