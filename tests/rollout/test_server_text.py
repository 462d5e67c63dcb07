"""Streamed text against the text of the whole completion, over hostile token sequences."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from rollout.params import Completion
from rollout.server_text import TextStream, WholeCharacters, without_stop
from tests.models import tokenizer

TOKENIZER = tokenizer()
STOPS = st.lists(st.sampled_from(["</answer>", "the", "é", "a", "here,", "ab", "b", "😀!", "\n\n"]), max_size=3).map(
    tuple
)
TEXTS = st.text("theanswr is7.5é😀</>!\n", max_size=40)
TOKENS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40)  # most are not a character, many are special


def completed(token_ids: list[int], stop: tuple[str, ...]) -> Completion:
    """Cut at the first stop string, as the engine does: at the first token that ends one."""
    for end in range(1, len(token_ids) + 1):
        text = TOKENIZER.decode(token_ids[:end], skip_special_tokens=True)
        ends = [text.find(string) + len(string) for string in stop if string in text]
        if ends:
            return Completion(token_ids[:end], text[: min(ends)], *[np.zeros(end)] * 3, "stop")
    text = TOKENIZER.decode(token_ids, skip_special_tokens=True)
    return Completion(token_ids, text, *[np.zeros(len(token_ids))] * 3, "length")


def parts_of(completion: Completion, stop, step: int) -> list[str]:
    stream = TextStream(TOKENIZER, stop)
    parts = [stream.push(completion.token_ids[i : i + step]) for i in range(0, len(completion.token_ids), step)]
    return [*parts, stream.finish(completion)]


@given(TEXTS, STOPS, st.integers(1, 3))
@example("the answer</answe</answer>", ("</answer>",), 1)
@example("ab", ("b", "ab"), 1)
def test_the_parts_of_a_text_add_up_and_hold_no_part_of_a_stop_string(text, stop, step):
    completion = completed(TOKENIZER.encode(text), stop)
    parts = parts_of(completion, stop, step)
    assert "".join(parts) == without_stop(completion, stop)
    assert not any(string in "".join(parts) for string in stop)
    assert not any("\ufffd" in part for part in parts)


@given(TOKENS, STOPS, st.integers(1, 3))
def test_the_parts_of_any_tokens_add_up(token_ids, stop, step):
    completion = completed(token_ids, stop)
    assert "".join(parts_of(completion, stop, step)) == without_stop(completion, stop)


def test_a_character_comes_whole():
    decoder, token_ids = WholeCharacters(TOKENIZER), TOKENIZER.encode("😀")
    assert len(token_ids) == 4
    assert [decoder.push(token) for token in token_ids] == ["", "", "", "😀"]


def test_text_comes_as_soon_as_it_is_certain():
    stream, token_ids = TextStream(TOKENIZER, ("</answer>",)), TOKENIZER.encode("a<b")
    assert [stream.push([token]) for token in token_ids] == ["a", "", "<b"]


def test_text_after_many_broken_bytes_comes_too():
    broken, stream = TOKENIZER.encode("é")[0], TextStream(TOKENIZER, ())
    assert "".join(stream.push([token]) for token in [broken] * 1000 + TOKENIZER.encode("a" * 70)).endswith("aaa")


def test_the_stop_string_that_began_first_is_left_out():
    assert without_stop(Completion([], "xab", None, None, None, "stop"), ("b", "ab")) == "x"
    assert without_stop(Completion([], "xab", None, None, None, "length"), ("b",)) == "xab"
