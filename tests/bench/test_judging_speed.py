"""A benchmark run and a plain loop are given the same work, and the table says what came of it."""

import json
from statistics import mean

import pytest

from bench import judging_speed
from bench.judging_speed import Loop, Ours, make_setup, shortened, table
from bench.main import main
from tests.models import config

TINY = config(vocab_size=2048, num_hidden_layers=1, max_position_embeddings=2048)


@pytest.fixture
def setup(monkeypatch):
    monkeypatch.setitem(judging_speed.MODELS, "10m", TINY)
    return make_setup(None, "10m", 2, 16)


def test_both_sides_write_the_same_greedy_judgments_and_as_many_drawn_ones(setup):
    ours, loop = Ours(setup), Loop(setup)
    greedy = ours.run(1, 0, 12, is_greedy=True)
    assert len(set(greedy.texts)) > 1 and len(greedy.texts) == 2 * 6
    for setting in loop.settings.values():
        assert loop.run(1, 0, 12, is_greedy=True, **setting).texts == greedy.texts
        assert loop.run(3, 1, 8, **setting).num_judgments == ours.run(3, 1, 8).num_judgments == 2 * 6 * 3


def test_an_end_token_ends_a_judgment_and_their_number_gives_the_mean_length(setup):
    drawn = [side(setup).run(16, 1, setup.max_tokens) for side in (Ours, Loop)]
    assert all(ran.num_judgments == 192 and ran.num_new_tokens < 192 * setup.max_tokens / 2 for ran in drawn)
    # Geometric with a mean of 314 / 16 = 20 tokens, give or take what a random model prefers; both draw from one law.
    lengths = [ran.num_new_tokens / ran.num_judgments for ran in drawn]
    assert 10 < mean(lengths) < 40 and lengths[0] == pytest.approx(lengths[1], rel=0.3)


def test_texts_are_shortened_by_words():
    assert shortened("a b c d e", 2) == "a c e" and shortened("a  b", 1) == "a  b" and shortened("", 8) == ""


def test_a_turn_is_compared_with_our_time_in_the_same_turn():
    runs = {
        "ours": [{"turn": t, "s": s, "judgments": 48, "new_tokens": 480} for t, s in ((1, 2.0), (2, 4.0))],
        "loop one at a time": [
            {"turn": t, "s": s, "judgments": 48, "new_tokens": 96} for t, s in ((1, 8.0), (2, 12.0))
        ],
    }
    record = {
        "machine": {"device": "some CPU", "threads": 2, "torch": "2", "commit": "abc"}, "peers": {"transformers": "5"},
        "model": "10m", "data": "made up", "prompts": 1, "responses": 6, "votes": 8, "shorten": 8, "repeats": 2,
        "max_tokens": 200, "context_tokens": 1234, "runs": runs,
    }  # fmt: skip
    text = table(record)
    assert "| ours | 18.00 | 3.0 (2.0 - 4.0) | 180 | - |" in text
    assert "| loop one at a time | 5.00 | 10.0 (8.0 - 12.0) | 10 | 3.50 (3.00 - 4.00) |" in text
    assert "1 prompts x 6 responses x 8 judgments" in text and "10 new tokens a judgment" in text


def test_the_command_writes_what_it_prints(setup, tmp_path, capsys):
    arguments = ["judging", "--prompts", "1", "--votes", "2", "--repeats", "1", "--shorten", "32"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "judging.md").read_text() in capsys.readouterr().out
    runs = json.loads((tmp_path / "judging.json").read_text())["runs"]
    assert list(runs) == ["ours", "loop one at a time", "loop 64 rows"]
    assert all(run["judgments"] == 12 for of_way in runs.values() for run in of_way)


@pytest.mark.parametrize(
    "change, message", [({"votes": 0}, "--votes must be at least 1"), ({"model": "1t"}, "--model 1t")]
)
def test_what_makes_no_sense_is_one_line(change, message, capsys):
    assert main(["judging", *(part for name, value in change.items() for part in (f"--{name}", str(value)))]) == 1
    assert message in capsys.readouterr().err
