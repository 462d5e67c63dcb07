"""judgments.jsonl: nothing that was judged is lost or asked twice, and nothing else gets in."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.judges.judge import Drawn, Question
from eval.judgments import is_failed, is_unparsed, open_judgments, prompt_hash
from tests.eval.fake_judge import FakeJudge

SETTINGS = {"data": "abc", "judge.seed": 0}
QUESTIONS = [Question(id=f"q{i}", prompt=f"Say {i}.", responses=(f"{i}",)) for i in range(7)]


def judged(folder, judge, votes=3, retry=False, settings=SETTINGS, questions=QUESTIONS):
    """What the folder holds after a run of `judge`."""
    with open_judgments(folder, settings, votes, keep_texts=True) as judgments:
        judgments.ask(judge, questions, "", retry)
        return dict(judgments.of)


@given(stop=st.integers(0, 6), cut=st.integers(0, 1 << 30), order=st.integers(0, 3))
def test_a_run_that_was_cut_anywhere_goes_on_to_the_same_judgments(stop, cut, order, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    expected = judged(tmp_path_factory.mktemp("whole"), FakeJudge())
    with pytest.raises(KeyboardInterrupt):
        judged(folder, FakeJudge(stop_after=stop, order=order))
    file = folder / "judgments.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: cut % (len(whole) + 1)])
    num_kept = file.read_bytes().count(b"\n") // 3
    rest = FakeJudge(order=order + 1)
    assert judged(folder, rest) == expected
    assert len(rest.asked) == len(QUESTIONS) - num_kept
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert sorted((line["question"], line["vote"]) for line in lines) == [
        (f"q{i}", v) for i in range(7) for v in range(3)
    ]
    # Whatever is there is read back as it was judged.
    again = FakeJudge()
    assert judged(folder, again) == expected and again.asked == []


def test_every_field_comes_back(tmp_path):
    drawn = [
        Drawn(text="a\n\ud800", choice="tie", seed=(1 << 64) - 1, seconds=0.25, is_swapped=True, scores=(3.0, 3.0)),
        Drawn(error="timeout"),
        Drawn(text="", score=0.0),
    ]
    with open_judgments(tmp_path, SETTINGS, 3) as judgments:
        judgments.add(QUESTIONS[0], drawn)
    with open_judgments(tmp_path, SETTINGS, 3, keep_texts=True) as judgments:
        assert judgments.of == {"q0": drawn}
    first = json.loads((tmp_path / "judgments.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == prompt_hash(QUESTIONS[0]) and first["question"] == "q0" and first["vote"] == 0


def test_what_was_asked_otherwise_is_asked_again(tmp_path):
    judged(tmp_path, FakeJudge())
    changed = [replace(QUESTIONS[3], responses=("other",)), *QUESTIONS[:3], replace(QUESTIONS[4], task="math")]
    judge = FakeJudge()
    judged(tmp_path, judge, questions=changed)
    assert sorted(judge.asked) == ["q3", "q4"]


def test_only_what_got_no_reply_is_asked_again(tmp_path):
    found = judged(tmp_path, FakeJudge(fails=("q2", "q5")))
    assert sum(is_failed(one) for votes in found.values() for one in votes) == 6
    kept, retried = FakeJudge(), FakeJudge()
    assert judged(tmp_path, kept) == found and kept.asked == []
    found = judged(tmp_path, retried, retry=True)
    assert sorted(retried.asked) == ["q2", "q5"]
    assert found == judged(tmp_path, FakeJudge()) and not any(is_failed(one) for v in found.values() for one in v)
    assert any(is_unparsed(one) for votes in found.values() for one in votes)


def test_a_folder_takes_the_judgments_of_one_run_alone(tmp_path):
    judged(tmp_path, FakeJudge())
    assert judged(tmp_path, FakeJudge(), votes=2) == judged(tmp_path, FakeJudge())  # three are there
    for settings, votes, message in [
        (SETTINGS | {"judge.seed": 1}, 3, r"judgments.jsonl: begun with judge.seed 0, now 1; .*name another --out"),
        (SETTINGS, 4, "holds 3 judgments of each question, and 4 are asked for; name another --out"),
    ]:
        with pytest.raises(ValueError, match=message):
            judged(tmp_path, FakeJudge(), votes, settings=settings)
    with (
        open_judgments(tmp_path, SETTINGS, 3),
        pytest.raises(ValueError, match="another run writes to it"),
        open_judgments(tmp_path, SETTINGS, 3),
    ):
        pass
    (tmp_path / "judgments.settings.json").unlink()
    with pytest.raises(ValueError, match=r"there is no judgments\.settings\.json that says what made judgments"):
        judged(tmp_path, FakeJudge())


class Moody(FakeJudge):
    """Gives no reply to some votes, each time to others."""

    def __init__(self, lost):
        super().__init__()
        self.lost = lost

    def drawn(self, question, vote):
        return Drawn(error="timeout", seed=vote) if vote in self.lost else super().drawn(question, vote)


@pytest.mark.parametrize("keep_texts", [True, False])
def test_asking_again_loses_no_judgment_that_was_there(keep_texts, tmp_path):
    for retry, lost in ((False, {1}), (True, {0, 2}), (False, {0, 1, 2})):
        with open_judgments(tmp_path, SETTINGS, 3, keep_texts) as judgments:
            judgments.ask(Moody(lost), QUESTIONS, "", retry)
    whole = judged(tmp_path.with_name("whole"), FakeJudge())
    assert judged(tmp_path, FakeJudge()) == whole  # texts, too


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"question": "q0", "vote": 0}', "prompt: missing"),
        ('{"question": "q0", "vote": -1, "prompt": "x"}', "vote: is -1"),
        ('{"question": "q0", "vote": 0, "prompt": "x", "score": "7"}', 'score: is "7"'),
        ('{"question": "q0", "vote": 0, "prompt": "x", "choice": "C"}', 'choice: is "C"'),
        ('{"question": "q0", "vote": 0, "prompt": "x", "text": 7}', "text: is a number"),
    ],
)
def test_a_line_that_is_no_judgment_is_named(line, message, tmp_path):
    judged(tmp_path, FakeJudge())
    file = tmp_path / "judgments.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"judgments\.jsonl:4: {message}.*remove the line"):
        judged(tmp_path, FakeJudge())
