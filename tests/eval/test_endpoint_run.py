"""A benchmark over an endpoint that fails: every failure is named and counted, and the run goes on."""

import json
from collections import Counter

import pytest

from eval.main import main
from tests.eval.data import layouts
from tests.eval.endpoint_server import GOOD, completion, hangs, replies, server

HTML = replies(b"<html>Bad Gateway</html>", 200, "text/html")
CUT = replies(completion("I was about to", "length"))


@pytest.fixture
def run(tmp_path):
    """`run(url, *more, out=...)`: a small RewardBench, 8 questions with 2 votes each; every request is tried once."""
    rows = [layouts.rewardbench_row(number=number) for number in range(4)]
    data = layouts.lines(tmp_path / "rows.jsonl", rows)

    def start(url, *more, out="run"):
        return main(
            [
                "rewardbench", "--data", str(data), "--out", str(tmp_path / out), "--votes", "2", "--endpoint", url,
                "--endpoint-model", "m", "--mode", "pointwise", "--max-tries", "1", "--timeout", "0.3",
                "--concurrency", "4", *more,
            ]
        )  # fmt: skip

    return start


def judgments(folder):
    """The votes that count: of a question that was asked again, the later ones."""
    lines = [json.loads(line) for line in (folder / "judgments.jsonl").read_text().splitlines()]
    return list({(line["question"], line["vote"]): line for line in lines}.values())


def told(folder):
    return json.loads((folder / "report.json").read_text())


def test_bad_replies_are_counted_and_asked_again_on_request(run, tmp_path, capsys):
    kinds = [hangs, CUT, HTML, GOOD]  # one vote of each question gets no reply
    with server(lambda body, number: kinds[number % 4]) as (url, _):
        assert run(url, "--concurrency", "1") == 0
    first = told(tmp_path / "run")
    assert (first["num_judgments"], first["num_failed"], first["num_unparsed"]) == (16, 8, 4)
    assert "8 of 16 judgments got no reply; --retry asks again" in (tmp_path / "run" / "report.md").read_text()
    assert "without a judgment: 12 (" in capsys.readouterr().err
    votes = judgments(tmp_path / "run")
    names = Counter(one["error"] and one["error"].partition(":")[0] for one in votes)
    assert names == {"timeout": 4, "html": 4, "cut": 4, None: 4}
    assert all(one["score"] == (None if one["error"] else 7) for one in votes)  # and never 0
    # Nothing is asked again that is not asked for.
    before = (tmp_path / "run" / "report.json").read_bytes()
    with server(lambda body, number: GOOD) as (url, seen):
        assert run(url) == 0 and not seen
        assert (tmp_path / "run" / "report.json").read_bytes() == before
        capsys.readouterr()
        assert run(url, "--retry") == 0 and len(seen) == 8  # and no other vote of a question
        assert "8 requests" in capsys.readouterr().err
    again = told(tmp_path / "run")
    assert again["num_failed"] == 0 and again["num_unparsed"] == 4  # the cut ones had a reply


def test_a_key_that_is_refused_in_the_middle_ends_a_run_that_goes_on_later(run, tmp_path, capsys):
    with server(lambda body, number: GOOD if number < 7 else replies({"error": "revoked"}, 401)) as (url, _):
        assert run(url) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "says 401, the key is not accepted" in errors[0]
    kept = len(judgments(tmp_path / "run"))
    with server(lambda body, number: GOOD) as (url, seen):
        assert run(url) == 0 and len(seen) == 16 - kept
        assert run(url, out="whole") == 0
    assert told(tmp_path / "run") == told(tmp_path / "whole")
