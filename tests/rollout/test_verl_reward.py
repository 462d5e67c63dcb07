"""The reward function as verl calls it, against a live server."""

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from patarm_core.rubrics import default_rubrics
from rollout.contexts import ContextBuilder, PromptConfig
from rollout.judge import Judge
from rollout.verl_reward import compute_score
from tests import models
from tests.fake_engine import FakeEngine
from tests.live_server import live_server

pytest.importorskip("httpx", reason="the extra `test` has it")
pytest.importorskip("uvicorn", reason="the extra `serve` has it")

TOKENIZER = models.tokenizer()
EXTRA = {"prompt": [{"role": "user", "content": "Why?"}], "task": "math", "index": 3}


@pytest.fixture(scope="module")
def url():
    """A judge that scores 5, 6, 7, … and nothing of a response that is mute."""

    def says(context, params, sample) -> str:
        return "hm <answer></answer>" if "mute" in TOKENIZER.decode(context) else f"so <answer>{sample + 5}</answer>"

    engine = FakeEngine(TOKENIZER, says, 4096, 0.0)
    contexts = ContextBuilder(TOKENIZER, PromptConfig(template="bare"), default_rubrics())
    with live_server(Judge(engine=engine, contexts=contexts)) as server:
        yield server.url


def test_the_score_is_the_mean_of_the_votes(url):
    call = {"data_source": "mine", "solution_str": "So.", "ground_truth": None, "extra_info": EXTRA}
    assert compute_score(**call, url=url, votes=3) == 6.0
    assert compute_score(**call, url=url + "/") == 5.0


def test_what_has_no_score_is_not_a_zero(url):
    with pytest.raises(ValueError, match="a row of mine: no judgment of the response has a score"):
        compute_score("mine", "mute", "", EXTRA, url=url)
    assert compute_score("mine", "mute", "", EXTRA, url=url, unscored=4.5) == 4.5
    assert compute_score("mine", "So.", "", EXTRA, url=url, unscored=4.5) == 5.0


class Busy(BaseHTTPRequestHandler):
    """Refuses the first two of three requests, then answers with `reply`."""

    num_asked, reply, after = 0, b'{"score": 7.5}', "0"

    def do_POST(self):
        type(self).num_asked += 1
        is_busy = self.num_asked % 3
        self.send_response(429 if is_busy else 200)
        self.send_header("Retry-After", self.after)
        self.end_headers()
        self.wfile.write(b"later" if is_busy else self.reply)

    def log_message(self, *_):
        return


def test_a_server_without_room_is_asked_again_and_another_program_is_told():
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        assert compute_score("mine", "So.", "", EXTRA, url=here) == 7.5 and Busy.num_asked == 3
        Busy.after = "60"
        with pytest.raises(RuntimeError, match="429: later"):  # there is no time to come again
            compute_score("mine", "So.", "", EXTRA, url=here, timeout=20)
        for reply, problem in ((b"{}", "the reply has no score"), (b"<html>", "JSONDecodeError")):
            Busy.reply, Busy.num_asked = reply, 2
            with pytest.raises(RuntimeError, match=problem):
                compute_score("mine", "So.", "", EXTRA, url=here)
        server.shutdown()


@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_that_drips_has_no_more_time_than_another(status):
    class Drips(Busy):
        def do_POST(self):
            self.send_response(status)
            self.end_headers()
            with suppress(OSError):
                for _ in range(30):
                    self.wfile.write(b" ")
                    time.sleep(0.1)

    with ThreadingHTTPServer(("127.0.0.1", 0), Drips) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match="TimeoutError: no reply within"):
            compute_score("mine", "So.", "", EXTRA, url=f"http://127.0.0.1:{server.server_port}", timeout=0.5)
        assert time.monotonic() - begun < 1.5
        server.shutdown()


def test_mistakes_are_told(url):
    with pytest.raises(ValueError, match=r"extra_info\.prompt: missing"):
        compute_score("mine", "So.", "", {}, url=url)
    with pytest.raises(RuntimeError, match=r"400.*task"):
        compute_score("mine", "So.", "", EXTRA | {"task": "cooking"}, url=url)
    with pytest.raises(RuntimeError, match=r"http://127\.0\.0\.1:9"):
        compute_score("mine", "So.", "", EXTRA, url="http://127.0.0.1:9")
