"""InFoBench: what a judge's answer counts as."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patarm_core.benchmarks.infobench import read_verdict


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("YES", True), (" yes, it is.", True), ("No.", False), ("The answer is YES", True), ("So: NO", False),
        ("YES or NO", True), ("It is YES and NO", None), ("perhaps", None), ("", None), ("the answer is yes", None),
    ],
)  # fmt: skip
def test_an_answer_is_its_beginning_or_the_one_word_in_it(text, verdict):
    assert read_verdict(text) is verdict


@given(st.text())
def test_every_text_has_a_verdict_or_none(text):
    assert read_verdict(text) in (True, False, None)
    assert read_verdict("yes" + text) is True and read_verdict("no" + text) is False
