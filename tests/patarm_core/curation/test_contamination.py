"""Prompts of benchmarks are found in whatever case, spacing and punctuation they come."""

from hypothesis import assume, given
from hypothesis import strategies as st

from patarm_core.curation.contamination import BenchmarkIndex, content_hash, words
from patarm_core.prompts import Message

LONG = "Write a Python function `has_close_elements` to check if in given list of numbers any two are closer than t."
SHORT = "What is 2+2?"
word = st.text(alphabet="abcdefghij", min_size=1, max_size=6)
spaces, marks = (
    st.sampled_from([" ", "\n", "\t ", "  \u00a0", "\u2003"]),
    st.sampled_from(["", ",", "!", " -", "…", "*"]),
)


def index(**options) -> BenchmarkIndex:
    made = BenchmarkIndex(**options)
    made.add("hep/0", LONG)
    made.add("sums/0", SHORT)
    return made


@given(st.lists(word, min_size=1, max_size=30), st.data())
def test_a_prompt_is_found_after_changes_of_case_white_space_and_punctuation(prompt, data):
    made = BenchmarkIndex()
    made.add("planted", " ".join(prompt))
    disguised = ""
    for one in prompt:
        cased = data.draw(st.sampled_from([one, one.upper(), one.title()]))
        disguised += cased + data.draw(marks) + data.draw(spaces)
    assert made.find(disguised) == "hash of planted"
    assert made.find([Message("system", "Be brief."), Message("user", disguised)]) == "hash of planted"


@given(st.lists(word, min_size=13, max_size=20), st.lists(word, max_size=9), st.lists(word, max_size=9))
def test_a_long_prompt_is_found_inside_another(prompt, before, after):
    made = BenchmarkIndex(n=13, min_share=1.0)
    made.add("planted", " ".join(prompt))
    assert made.find(" ".join([*before, *prompt, *after])) is not None


@given(st.lists(word, min_size=1, max_size=30), st.lists(word, min_size=1, max_size=30))
def test_what_shares_nothing_is_not_found(prompt, other):
    assume(not set(prompt) & set(other) and "".join(prompt) != "".join(other))
    made = BenchmarkIndex()
    made.add("planted", " ".join(prompt))
    assert made.find(" ".join(other)) is None


def test_a_short_prompt_is_found_as_a_whole_only():
    assert index().find("what is 2 + 2") == "hash of sums/0"
    assert index().find("If what is 2+2? is asked, say no.") is None
    assert index().find([Message("user", "Hi"), Message("assistant", "Hi."), Message("user", SHORT)]) is not None


def test_the_share_of_ngrams_that_is_enough():
    half = " ".join(words(LONG)[:16]) + " do something else altogether"
    assert index().find(half) == f"4 of {len(words(LONG)) - 12} 13-grams of hep/0"
    assert index(min_share=0.9).find(half) is None
    assert index(n=40).find(half) is None


def test_scripts_without_spaces_have_words_and_texts_without_words_match_nothing():
    assert words("你好, Welt_2") == ["你", "好", "welt", "2"]
    assert content_hash("！Ｔｅａ？") == content_hash("tea")
    assert content_hash("?!") is None
    made = BenchmarkIndex()
    made.add("marks", "?!")
    assert made.find("...") is None
