"""Endpoints, good and bad: a server of this machine that misbehaves in every way, and our own as a good one."""

import json
import socket
import ssl
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.judges.chat_client import (
    ChatClient,
    EndpointError,
    ReplyError,
    Retries,
    _ends_after,
    read_reply,
    retry_after_s,
)
from eval.judges.endpoint import EndpointJudge, Price
from eval.judges.form import Sampling
from eval.judges.judge import KEPT, Question, choice_of, mean_of
from eval.judges.patarm import patarm_form
from eval.judges.rate_limit import RateLimit
from patarm_core.rubrics import default_rubrics
from rollout.contexts import ContextBuilder, PromptConfig
from rollout.judge import Judge
from tests import models
from tests.eval.endpoint_server import (
    GOOD,
    completion,
    drips,
    drips_headers,
    hangs,
    hangs_up,
    is_cut_off,
    replies,
    server,
)
from tests.fake_engine import FakeEngine

GENERAL = patarm_form(default_rubrics(), template="general")
QUICK = Retries(max_tries=3, first_s=0.01, most_s=0.02)


def judge_of(url, mode="pointwise", timeout_s=0.25, retries=QUICK, limit=None, api_key="", **settings):
    client = ChatClient(url, timeout_s=timeout_s, retries=retries, limit=limit, api_key=api_key, jitter_seed=0)
    lines = []
    given = {"sampling": Sampling(max_tokens=100), "model": "m", "name": "m", "tell": lines.append} | settings
    judge = EndpointJudge(client=client, form=GENERAL, mode=mode, **given)
    judge.lines = lines
    return judge


def questions(num, responses=("So.",)):
    return [Question(id=str(i), prompt=f"Why {i}?", responses=responses) for i in range(num)]


def ask(url, num=1, votes=1, **settings):
    judge = judge_of(url, **settings)
    return judge, dict(judge.judge(questions(num), votes))


# Good endpoints


def test_every_vote_is_a_request_with_a_seed_of_its_own():
    with server(lambda body, n: GOOD) as (url, seen):
        judge, drawn = ask(url, num=3, votes=4, api_key="secret", extra={"user": "me", "top_p": None})
        again = ask(url, num=3, votes=2)[1]
    assert [mean_of(drawn[i], 4) for i in range(3)] == [7, 7, 7]
    first = [body for body in seen if "user" in body]
    assert len(first) == 12 and len({body["seed"] for body in first}) == 12
    assert {one.seed for votes in again.values() for one in votes} < {body["seed"] for body in first}
    assert all(0 <= body["seed"] < 1 << 31 for body in first)
    for body in first:
        assert body["path"] == "/v1/chat/completions" and body["headers"]["Authorization"] == "Bearer secret"
        assert (body["model"], body["max_tokens"], body["user"]) == ("m", 100, "me")
        assert "top_p" not in body and "top_k" not in body and body["messages"][-1]["role"] == "user"
    assert judge.tally.tokens_in == 120 and judge.tally.tokens_out == 60 and not judge.tally.errors


def test_votes_that_are_there_are_not_asked_for_and_the_others_are_as_they_were():
    with server(lambda body, n: GOOD) as (url, seen):
        _, whole = ask(url, votes=4)
        judge = judge_of(url)
        (_, drawn), *others = judge.judge([replace(questions(1)[0], kept=frozenset({0, 2}))], 4)
    assert len(seen) == 4 + 2 and not others and "2 requests" in judge.lines[0]
    assert [drawn[vote].seed for vote in (1, 3)] == [whole[0][vote].seed for vote in (1, 3)]
    assert drawn[0] == drawn[2] == KEPT and judge.tally.replies == 2 and not judge.tally.errors


def test_requests_are_open_side_by_side_and_no_more_than_asked_for():
    open_now, most, lock = 0, 0, threading.Lock()

    def slow(body, number):
        def write(handler):
            nonlocal open_now, most
            with lock:
                open_now += 1
                most = max(most, open_now)
            time.sleep(0.05)
            with lock:
                open_now -= 1
            GOOD(handler)

        return write

    with server(slow) as (url, seen):
        _, drawn = ask(url, num=12, concurrency=4, timeout_s=5)
    assert len(drawn) == 12 and 2 <= most <= 4


def test_choices_are_told_in_the_order_of_the_question():
    def prefers_good(body, number):
        text = body["messages"][-1]["content"]
        return replies(completion(f"<answer>{'A' if text.index('good') < text.index('bad') else 'B'}</answer>"))

    with server(prefers_good) as (url, seen):
        for order in ("drawn", "both"):
            judge = judge_of(url, "pairwise", order=order)
            drawn = dict(judge.judge(questions(8, ("good", "bad")), 2))
            assert {choice_of(votes, 2) for votes in drawn.values()} == {"A"}
            assert {one.is_swapped for votes in drawn.values() for one in votes} == {True, False}


def test_our_own_server_is_a_good_endpoint():
    pytest.importorskip("uvicorn", reason="the extra `serve` has it")
    pytest.importorskip("httpx", reason="the extra `test` has it")
    from tests.live_server import live_server

    tokenizer = models.tokenizer()
    engine = FakeEngine(tokenizer, lambda context, params, sample: "so <answer>6.5</answer>", 8192)
    contexts = ContextBuilder(tokenizer, PromptConfig(), default_rubrics())
    with live_server(Judge(engine=engine, contexts=contexts)) as live:
        judge = judge_of(live.url, timeout_s=20, model="tiny")
        drawn = dict(judge.judge(questions(5), 2))
    assert [mean_of(drawn[i], 2) for i in range(5)] == [6.5] * 5
    assert judge.tally.tokens_in > 0 and judge.tally.replies == 10 and not judge.tally.retries


# Bad ones


@pytest.mark.parametrize(
    "bad, name",
    [
        (replies({"error": "slow down"}, 429), "http 429"),
        (replies(b"oops", 500), "http 500"),
        (replies(b"<html>Bad Gateway</html>", 502, "text/html"), "http 502"),
        (replies(b"<!DOCTYPE html><html>Log in</html>", 200, "text/html"), "html"),
        (replies(b"  <html>no type</html>"), "html"),
        (replies(b""), "empty"),
        (replies(completion("")), "empty"),
        (replies(completion(None)), "empty"),
        (replies(b"{'choices': }"), "malformed"),
        (replies({"choices": []}), "malformed"),
        (replies({"error": {"message": "overloaded"}}), "malformed"),
        (replies([1, 2]), "malformed"),
        (is_cut_off, "connection"),
        (hangs, "timeout"),
        (drips, "timeout"),
        (drips_headers, "timeout"),
        (hangs_up, "connection"),
    ],
)
def test_what_may_pass_is_tried_again_and_named_when_it_does_not(bad, name):
    with server(lambda body, n: bad if n < 2 else GOOD) as (url, seen):
        judge, drawn = ask(url)
        assert drawn[0][0].score == 7 and len(seen) == 3 and judge.tally.retries == {name: 2}
    with server(lambda body, n: bad) as (url, seen):
        judge, drawn = ask(url)
        (one,) = drawn[0]
        assert one.score is None and one.text is None and one.error.partition(":")[0] == name
        assert len(seen) == 3 and judge.tally.errors == {name: 1}
        assert f"without a judgment: 1 ({name} 1)" in judge.lines[-1]


@pytest.mark.parametrize(
    "bad, name, has_text",
    [
        (replies({"error": {"message": "too long"}}, 400), "http 400", False),
        (replies(completion("I was ", "length")), "cut", True),
        (replies(completion("", "length")), "cut", True),
        (replies(completion("I cannot judge.")), "unparsed", True),
        (replies(completion("<answer>11</answer>")), "unparsed", True),
        (replies(completion(None, "content_filter")), "refused", False),
    ],
)
def test_what_would_come_again_is_not_tried_again(bad, name, has_text):
    with server(lambda body, n: bad) as (url, seen):
        judge, drawn = ask(url)
    (one,) = drawn[0]
    assert one.score is None and one.error.partition(":")[0] == name
    assert (one.text is not None) == has_text
    assert len(seen) == 1 and judge.tally.errors == {name: 1}


def test_an_answer_that_was_there_when_the_tokens_ran_out_counts():
    with server(lambda body, n: replies(completion("<answer>6</answer> and", "length"))) as (url, _):
        assert ask(url)[1][0][0].score == 6


@pytest.mark.parametrize(
    "bad, message",
    [
        (replies({"error": "bad key sk-123"}, 401), r"says 401, the key is not accepted: .*\(key\)"),
        (replies(b"no such model", 404), "says 404, there is no such path or model: no such model"),
        (replies(b"", 302, Location="http://elsewhere/"), "points to 'http://elsewhere/'"),
    ],
)
def test_what_every_request_would_meet_ends_the_run_at_once(bad, message):
    with server(lambda body, n: bad) as (url, seen), pytest.raises(EndpointError, match=message) as told:
        ask(url, num=50, concurrency=2, api_key="sk-123")
    assert len(seen) <= 4 and "sk-123" not in str(told.value)


def test_an_endpoint_that_never_replies_ends_the_run():
    with (
        server(lambda body, n: replies(b"", 503)) as (url, seen),
        pytest.raises(EndpointError, match="no reply to the"),
    ):
        ask(url, num=500, concurrency=4)
    assert len(seen) < 100


def test_questions_that_were_never_sent_are_no_sign_of_a_dead_endpoint():
    """A prompt with an unknown role cannot be asked; forty of them and one hiccup are not forty-one lost replies."""
    bad = [Question(id=str(i), prompt=[{"role": "nobody", "content": "x"}], responses=("So.",)) for i in range(40)]
    with server(lambda body, n: replies(b"", 503) if n < 3 else GOOD) as (url, _):
        drawn = dict(judge_of(url, concurrency=1).judge([*bad, *questions(3)], 1))
    assert [one[0].error.partition(":")[0] for i, one in drawn.items() if i < 40] == ["unasked"] * 40
    assert [drawn[i][0].score for i in (40, 41, 42)] == [None, 7, 7]


def test_no_server_at_all_is_a_connection_error():
    with server(lambda body, n: GOOD) as (url, _):
        pass
    assert ask(url)[1][0][0].error.startswith("connection: ")


def test_a_storm_of_everything_loses_nothing_and_invents_nothing():
    kinds = [GOOD, replies(b"", 503), replies(b"<html>", 200, "text/html"), replies(completion("hm")), hangs_up]
    with server(lambda body, n: kinds[n % len(kinds)]) as (url, _):
        judge, drawn = ask(url, num=40, votes=2, concurrency=8)
    flat = [one for votes in drawn.values() for one in votes]
    assert sorted(drawn) == list(range(40)) and len(flat) == 80
    assert all((one.score == 7) == (one.error is None) and one.score != 0 for one in flat)
    named = Counter(one.error.partition(":")[0] for one in flat if one.error)
    assert named == judge.tally.errors and judge.tally.replies == sum(one.text is not None for one in flat)


def test_who_stops_reading_stops_the_requests():
    with server(lambda body, n: GOOD) as (url, seen):
        judged = judge_of(url, concurrency=2).judge(questions(200), 1)
        next(judged)
        judged.close()
        time.sleep(0.1)
        num = len(seen)
        time.sleep(0.1)
        assert num == len(seen) < 20


# Waiting


def test_tls_stays_on_when_the_time_is_over():
    """Or what another thread is just sending, the key with it, would go out as plain text."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with theirs, context.wrap_socket(ours, server_hostname="nobody", do_handshake_on_connect=False) as tls:
        with pytest.raises(TimeoutError), _ends_after(tls, 0.05):
            tls.recv(1)
        with pytest.raises(OSError):  # of TLS with nobody; a ValueError where there is no TLS
            tls.unwrap()


@pytest.fixture
def nowhere():
    """An address at which nobody answers: its queue is full, and what else asks to connect is dropped."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield full.getsockname()
        for one in waiting:
            one.close()


def addresses(monkeypatch, *found, strange=()):
    known = [*strange, *((socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in found)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: known)


def test_a_dead_address_of_a_host_leaves_time_for_the_next(nowhere, monkeypatch):
    with server(lambda body, n: GOOD) as (url, seen):
        strange = [(99, socket.SOCK_STREAM, 0, "", ("", 1))]  # of a family that no machine has
        addresses(monkeypatch, nowhere, ("127.0.0.1", int(url.split(":")[2].split("/")[0])), strange=strange)
        judge, drawn = ask(url, timeout_s=1)
    assert drawn[0][0].score == 7 and len(seen) == 1 and not judge.tally.retries


def test_connecting_and_the_handshake_are_within_the_time_of_the_whole(nowhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        addresses(monkeypatch, nowhere, mute.getsockname())
        begun = time.monotonic()
        _, drawn = ask("https://mute", timeout_s=1, retries=Retries(max_tries=1))
    assert drawn[0][0].error == "timeout: no reply within 1 s" and 0.9 < time.monotonic() - begun < 1.8


def test_a_server_that_says_when_is_not_asked_before():
    with server(lambda body, n: replies(b"", 429, Retry_After="0.3") if n == 0 else GOOD) as (url, seen):
        _, drawn = ask(url)
    assert drawn[0][0].score == 7 and seen[1]["at"] - seen[0]["at"] >= 0.29


def test_a_server_that_says_at_once_is_asked_after_a_wait_all_the_same():
    busy = replies(b"", 503, Retry_After="0")
    with server(lambda body, n: busy if n < 2 else GOOD) as (url, seen):
        _, drawn = ask(url, retries=Retries(max_tries=3, first_s=0.2, most_s=0.2))
    assert drawn[0][0].score == 7 and seen[2]["at"] - seen[0]["at"] >= 0.2


def test_requests_keep_to_the_rate():
    with server(lambda body, n: GOOD) as (url, seen):
        ask(url, num=6, limit=RateLimit(1200))  # one each 50 ms
    at = sorted(body["at"] for body in seen)
    assert at[-1] - at[0] >= 0.23


def test_places_are_spread_and_a_pause_holds_for_everybody():
    now = [100.0]
    limit = RateLimit(30, clock=lambda: now[0])
    assert [limit.delay_s() for _ in range(3)] == [0, 2, 4]
    now[0] = 200.0
    assert limit.delay_s() == 0
    limit.pause(50)
    assert [limit.delay_s() for _ in range(2)] == [50, 52]
    assert [RateLimit(None, clock=lambda: 0.0).delay_s() for _ in range(3)] == [0, 0, 0]


@given(st.integers(1, 10_000), st.randoms())
def test_waits_double_up_to_a_limit_with_jitter_in_the_upper_half(tries, jitter):
    whole = min(60.0, 2.0 ** min(tries - 1, 60))
    assert whole / 2 <= Retries().wait_s(tries, jitter) <= whole


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("7", 7),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40),
        ("soon", None),
        ("", None),
        (None, None),
        ("-1", None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after_s(value, now=lambda: 60.0) == seconds


# Whatever comes


@given(
    st.one_of(st.sampled_from([200, 301, 400, 401, 418, 429, 500]), st.integers(100, 999)),
    st.dictionaries(st.sampled_from(["Content-Type", "Retry-After", "Location"]), st.text()),
    st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "error", "usage", "finish_reason"]), inner
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
)  # fmt: skip
@example(200, {}, b"[" * 100_000)
@example(200, {}, b'{"choices": [{"message": {"content": "x"}, "finish_reason": []}], "usage": {"prompt_tokens": -1}}')
def test_any_reply_is_a_completion_or_a_named_error(status, headers, body):
    try:
        reply = read_reply(status, headers, body)
    except (ReplyError, EndpointError) as error:
        assert str(error)
    else:
        assert status == 200 and isinstance(reply.text, str) and (reply.text.strip() or reply.is_cut)


# Before it starts


def test_the_estimate_counts_requests_tokens_cost_and_time():
    judge = judge_of("http://x", price=Price(tokens_in=2.0, tokens_out=10.0), requests_per_minute=60, concurrency=4)
    text = judge.estimate(questions(10), 3)
    characters = 3 * sum(len(GENERAL.turns("pointwise", q)[0]["content"]) for q in questions(10))
    assert f"30 requests; about {characters / 4:,.0f} tokens in, at most 3,000 out" in text
    assert f"cost {characters / 2e6:.2f} to {(characters / 2 + 30_000) / 1e6:.2f}" in text
    assert "at least 0.5 min at 60 a minute" in text and "1.3 min where a reply takes 10 s, 4 at a time" in text
    assert "cost not known" in replace(judge, price=Price()).estimate(questions(1), 1)


def test_the_estimate_is_told_before_the_first_request():
    with server(lambda body, n: GOOD) as (url, seen):
        told = []
        judge = judge_of(url, tell=lambda line: told.append((len(seen), line)))
        list(judge.judge(questions(2), 1))
    assert told[0][0] == 0 and "2 requests" in told[0][1] and "2 replies" in told[-1][1]


@pytest.mark.parametrize(
    "url, path",
    [
        ("https://api.openai.com/v1", "/v1/chat/completions"), ("http://localhost:8000", "/v1/chat/completions"),
        ("localhost:8000/v1/", None), ("https://host/a/b/chat/completions", "/a/b/chat/completions"), ("ftp://x", None),
        ("http://", None), ("http://host:99999", None), ("http://[::1", None),
    ],
)  # fmt: skip
def test_addresses(url, path):
    if path is None:
        with pytest.raises(ValueError, match="--endpoint"):
            ChatClient(url)
    else:
        assert ChatClient(url).path == path
