"""The grammar mask against `parse`: walks under the mask end in judgments, and judgments walk under the mask.

V vocabulary
"""

import itertools
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from patarm_core.judgment import JUDGMENT_TAGS, judgment_tags, parse
from rollout.grammar import JudgmentGrammar
from tests.models import tokenizer as tag_tokenizer
from tests.strategies import judgment_text

SETTINGS = [(rubrics, answer) for rubrics in ("adaptive", "primary", "generated") for answer in ("score", "choice")]
TAGS = [f"<{slash}{name}>" for name in JUDGMENT_TAGS for slash in ("", "/")]
QWEN_FILE = Path(__file__).parents[3] / "shared/data/tokenizer/qwen3_tokenizer.json"
VOCAB_SIZE = {"tags": 340, "spans": 420, "no end": 420, "qwen": 151_936}  # Qwen's tokenizer has 151,669 of them


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """tags: each tag is one token. spans: tags are spelled, by tokens that run over their ends and over white space.
    no end: the same without special tokens."""
    if name == "tags":
        return tag_tokenizer()
    if name == "qwen":
        return PreTrainedTokenizerFast(tokenizer_file=str(QWEN_FILE), clean_up_tokenization_spaces=False)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420 - (name == "spans"), initial_alphabet=alphabet, show_progress=False)
    texts = [f"{n}☃\n{judgment_text('10.00')} \n{judgment_text(str(n / 10))}" for n in range(99)]
    made.train_from_iterator(texts, trainer)
    if name == "spans":
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    return PreTrainedTokenizerFast(tokenizer_object=made)


@cache
def grammar(name: str = "tags", rubrics: str = "adaptive", answer: str = "score", **kwargs) -> JudgmentGrammar:
    return JudgmentGrammar(tokenizer(name), VOCAB_SIZE[name], rubrics, answer, **kwargs)


@cache
def pieces(name: str) -> list[str]:
    return [tokenizer(name).decode([token]) for token in range(VOCAB_SIZE[name])]


@cache
def character_ids() -> dict[str, int]:
    """The token of each ASCII character."""
    return {piece: i for i, piece in reversed([*enumerate(pieces("tags"))]) if len(piece) == 1 and piece.isascii()}


def state_after(one: JudgmentGrammar, text: str) -> int | None:
    """The state after an ASCII text, one token for each character; None if it is refused."""
    state = one.start
    for character in text:
        try:
            state = one.advance(state, character_ids()[character])
        except ValueError:
            return None
    return state


# --- the definition ---------------------------------------------------------------------------------------------------


def is_judgment(text: str, rubrics: str, answer: str, max_decimals: int = 2) -> bool:
    """Whether the grammar is to let this text through."""
    if parse(text, answer, rubrics).error is not None or not text.endswith("</answer>"):
        return False
    parts = re.split("|".join(TAGS), text)  # [outside, inside, outside, …]
    fraction = rf"(\.[0-9]{{1,{max_decimals}}})?" if max_decimals else ""
    right = "A|B" if answer == "choice" else f"[0-9]{fraction}|10{fraction}"
    return not "".join(parts[::2]).strip(" \t\r\n") and re.fullmatch(right, parts[-2]) is not None


@cache
def endings(rubrics: str, answer: str) -> list[str]:
    """Enough of them that one makes a judgment of every text that is the beginning of one."""
    texts = []
    for written in ["A"] if answer == "choice" else ["7.77", "10.00"]:
        blocks = {"think": "x", "generate_rubrics": "x", "eval": "x", "answer": written}
        text = "".join(f"<{name}>{blocks[name]}</{name}>" for name in judgment_tags(rubrics))
        texts += [text[start:] for start in range(len(text) + 1)]
    return sorted(set(texts), key=len)


@cache
def can_become_a_judgment(text: str, rubrics: str, answer: str) -> bool:
    return any(is_judgment(text + ending, rubrics, answer) for ending in endings(rubrics, answer))


chunks = st.sampled_from([*TAGS, *"</>tx \n170.AB#", "</", "<t", "think", "eval>", "generate_", "rubrics>", "answer>"])
beginnings = st.builds(  # of a judgment, then a few chunks
    lambda written, end, more: (judgment_text(written)[:end] if end else "") + "".join(more),
    st.sampled_from(["7.25", "10.0", "1", "A"]),
    st.integers(0, len(judgment_text("7.25"))),
    st.lists(chunks, max_size=6),
)


@settings(max_examples=400)
@given(st.sampled_from(SETTINGS), beginnings)
@example(("adaptive", "score"), "<<think><</think><</think>")
@example(("adaptive", "score"), "<think></thin</think></eva")
@example(("adaptive", "score"), "<think></answ</think> <generate_rubrics> <eval")
@example(("adaptive", "score"), "<think><eval>")
@example(("primary", "choice"), "<think></think><eval><generate_rubrics>")
@example(("primary", "score"), "<think></think> \n<generate")
@example(("generated", "score"), "<think></think> \n<eval")
@example(("adaptive", "score"), " x<think>")
@example(("adaptive", "score"), "<think></think> < eval>")
def test_accepts_exactly_the_beginnings_of_judgments(setting, text):
    one = grammar("tags", *setting)
    for end in range(len(text) + 1):
        state = state_after(one, text[:end])
        assert (state is not None) == can_become_a_judgment(text[:end], *setting), text[:end]
        if state is None:
            break
        assert one.is_complete(state) == is_judgment(text[:end], *setting)


@pytest.mark.parametrize("max_decimals", [0, 1, 2, 3])
def test_an_answer_is_a_plain_score(max_decimals):
    one = grammar(max_decimals=max_decimals)
    for length in range(6):
        for written in map("".join, itertools.product("0179.", repeat=length)):
            text = judgment_text(written)
            assert (state_after(one, text) is not None) == is_judgment(text, "adaptive", "score", max_decimals), written


@pytest.mark.parametrize("written", ["0", "0.0", "7", "8.3", "9.99", "10", "10.0", "10.00", "1.05"])
def test_scores(written):
    assert grammar().is_complete(state_after(grammar(), judgment_text(written)))
    assert state_after(grammar(answer="choice"), judgment_text(written)) is None


# The second line is read by `parse`, and left out here.
@pytest.mark.parametrize(
    "written",
    ["", "11", "10.01", "-1", "7.", ".5", "7,5", "8/10", "1e1", "100", "A", "7.5.5", "d", "#", "#.#"]
    + ["007", "00", "7.123", " 7", "7 ", "7\n"],
)
def test_not_scores(written):
    assert state_after(grammar(), judgment_text(written)) is None


def test_choices():
    one = grammar(answer="choice")
    for written in ("A", "B", "", "C", "AB", "a", " A", "7"):
        assert (state_after(one, judgment_text(written)) is not None) == (written in ("A", "B"))


# --- walks ------------------------------------------------------------------------------------------------------------


def walk(one: JudgmentGrammar, name: str, max_tokens: int, liked: str, seed: int) -> list[int]:
    """Draws tokens that the mask allows, mostly among those that hold a liked character."""
    rng, state, token_ids = random.Random(seed), one.start, []
    is_liked_V = liked_V(name, liked)
    while not one.is_complete(state):
        remaining = max_tokens - len(token_ids)
        allowed_V = one.allowed_V(state, remaining)
        if rng.random() < 0.9 and (allowed_V & is_liked_V).any():
            allowed_V = allowed_V & is_liked_V
        token_ids.append(int(rng.choice(np.flatnonzero(allowed_V))))
        state = one.advance(state, token_ids[-1])
        assert one.shortest(state) <= remaining - 1
    return token_ids


@cache
def liked_V(name: str, liked: str) -> np.ndarray:
    return np.array([any(character in piece for character in liked) for piece in pieces(name)])


def assert_walks_end_in_judgments(name, setting, spare, liked, seed):
    one = grammar(name, *setting)
    max_tokens = one.shortest(one.start) + spare
    token_ids = walk(one, name, max_tokens, liked, seed)
    text = tokenizer(name).decode(token_ids, skip_special_tokens=True)
    assert len(token_ids) <= max_tokens
    assert is_judgment(text[: text.index("</answer>") + len("</answer>")], *setting), text
    assert parse(text, setting[1], setting[0]).error is None


# "": uniform. The others lead into tags, half tags, halves of characters, white space between blocks and long answers.
LIKED = st.sampled_from(["", "<", "</", "</>ehint", "\ufffd<", "\ufffd", " \n", "01.", "AB>"])


@settings(max_examples=300)
@given(
    st.sampled_from(["tags", "spans", "no end"]), st.sampled_from(SETTINGS), st.integers(0, 60), LIKED,
    st.integers(0, 2**32),
)  # fmt: skip
def test_every_walk_ends_in_a_judgment_in_time(name, setting, spare, liked, seed):
    assert_walks_end_in_judgments(name, setting, spare, liked, seed)


near_tags = st.sampled_from(["<", "</", "<thin", "k>", "</eval", "<Think>", "☃", "\n", " a", "<task>"])
free_texts = st.text(max_size=20) | st.lists(near_tags, max_size=8).map("".join)
spaces = st.text(" \t\r\n", max_size=3)
scores = st.one_of(st.integers(0, 10).map(str), st.integers(0, 100).map(lambda tenths: str(tenths / 10)))


@st.composite
def judgments(draw, setting):
    """Well-formed ones within the limits of the grammar, and all else as wild as `parse` allows."""
    text = ""
    for name in judgment_tags(setting[0])[:-1]:
        inside = draw(free_texts.filter(lambda inside: not any(tag in inside for tag in TAGS)))
        text += f"{draw(spaces)}<{name}>{inside}</{name}>"
    return f"{text}{draw(spaces)}<answer>{draw(scores if setting[1] == 'score' else st.sampled_from('AB'))}</answer>"


def assert_accepted(name, setting, text):
    one, state = grammar(name, *setting), grammar(name, *setting).start
    token_ids = tokenizer(name).encode(text, add_special_tokens=False)
    for i, token_id in enumerate(token_ids):
        assert not one.is_complete(state)
        assert one.allowed_V(state, len(token_ids) - i)[token_id], (text, token_id)
        state = one.advance(state, token_id)
    assert one.is_complete(state)


@settings(max_examples=300)
@given(st.sampled_from(["tags", "spans", "no end"]), st.sampled_from(SETTINGS), st.data())
def test_every_judgment_is_accepted_token_by_token(name, setting, data):
    text = data.draw(judgments(setting))
    assert is_judgment(text, *setting)
    assert_accepted(name, setting, text)


# --- tokens -----------------------------------------------------------------------------------------------------------


def states(one: JudgmentGrammar, vocab_size: int) -> dict[int, dict[int, int]]:
    """state: {token: next state}, of all that can be reached."""
    found: dict[int, dict[int, int]] = {}
    todo = [one.start]
    while todo:
        if (state := todo.pop()) in found:
            continue
        found[state] = {}
        for token in range(vocab_size):
            try:
                found[state][token] = one.advance(state, token)
            except ValueError:
                continue
        todo += found[state].values()
    return found


@pytest.mark.parametrize("name", ["tags", "spans", "no end"])
@pytest.mark.parametrize("setting", [("adaptive", "score"), ("primary", "choice")])
def test_shortest_and_masks_are_what_the_tokens_say(name, setting):
    one = grammar(name, *setting)
    V = VOCAB_SIZE[name]
    for state, next_states in states(one, V).items():
        # Bellman's equation has one solution, since every token counts.
        rest = {token: one.shortest(next_state) for token, next_state in next_states.items()}
        assert one.shortest(state) == (0 if one.is_complete(state) else 1 + min(rest.values()))
        for remaining in [*range(max(1, one.shortest(state)), max(rest.values()) + 3), 4096]:
            allowed_V = one.allowed_V(state, remaining)
            assert allowed_V.shape == (V,) and allowed_V.dtype == bool and allowed_V.any()
            assert set(np.flatnonzero(allowed_V)) == {token for token in rest if rest[token] <= remaining - 1}


def test_the_shortest_judgments():
    assert grammar().shortest(grammar().start) == 9  # eight tags and a digit
    assert grammar(rubrics="primary").shortest(grammar(rubrics="primary").start) == 7
    assert grammar("spans").shortest(grammar("spans").start) < 9 * 3


def test_special_tokens_end_a_complete_judgment_and_stand_nowhere_else():
    special = {i for i, token in tokenizer("tags").added_tokens_decoder.items() if token.special}
    assert len(special) == 3
    for state, next_states in states(grammar(), VOCAB_SIZE["tags"]).items():
        assert special & next_states.keys() == (special if grammar().is_complete(state) else set())
        if grammar().is_complete(state):
            assert next_states == dict.fromkeys(special, state)


def test_without_special_tokens_white_space_may_follow():
    one = grammar("no end")
    for state, next_states in states(one, VOCAB_SIZE["no end"]).items():
        if one.is_complete(state):
            assert next_states and set(next_states.values()) == {state}
            assert all(pieces("no end")[token].isspace() for token in next_states)


def test_ids_beyond_the_tokenizer_and_empty_tokens_are_never_allowed():
    one = JudgmentGrammar(tokenizer("tags"), VOCAB_SIZE["tags"] + 5)
    for state in range(0, 200, 7):
        allowed_V = one.allowed_V(state, 100)
        assert allowed_V.shape == (VOCAB_SIZE["tags"] + 5,) and not allowed_V[-5:].any()


def hand_made(*vocabulary: str, **special: str) -> JudgmentGrammar:
    """A grammar of judgments without generated rubrics, over these tokens and no other."""
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=[]))
    made.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    return JudgmentGrammar(made, len(made), rubrics="primary")


def test_what_these_tokens_cannot_complete_is_not_begun():
    vocabulary = "<think>", "</think>", "<eval>", "</eval>", "<answer>", "</answer>", "7", "1.", "10.", "<", "t", "</"
    one = hand_made(*vocabulary)
    allowed = []
    for state in [one.start, one.advance(one.start, 0)]:
        allowed.append({vocabulary[token] for token in np.flatnonzero(one.allowed_V(state, 100))})
    assert allowed == [{"<think>"}, {"</think>", "7", "1.", "10.", "<", "t", "</"}]  # no "hink>" to go on with
    state = one.start
    for token in range(5):
        state = one.advance(state, token)
    assert {vocabulary[token] for token in np.flatnonzero(one.allowed_V(state, 100))} == {"7", "1."}
    for refused in (8, 9):  # "10." needs a "0"
        with pytest.raises(ValueError, match="cannot come next"):
            one.advance(state, refused)


def test_a_special_token_is_not_the_text_that_it_looks_like():
    vocabulary = "<think>", "</think>", "<eval>", "</eval>", "<answer>", "</answer>", "7"
    one = hand_made(*vocabulary, eos_token="<think></think><eval></eval>")
    assert one.shortest(one.start) == 7
    assert np.flatnonzero(one.allowed_V(one.start, 100)).tolist() == [0]


def test_masks_are_kept_and_read_only():
    one = grammar()
    assert one.allowed_V(one.start, 40) is one.allowed_V(one.start, 4096)
    with pytest.raises(ValueError, match="read-only"):
        one.allowed_V(one.start, 40)[0] = True


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_refuses_tokens():
    one = grammar()
    x = character_ids()["x"]
    with pytest.raises(ValueError, match=rf"token {x} \('x'\) cannot come next in a judgment"):
        one.advance(one.start, x)
    for token in (-1, 340, 10**6):
        with pytest.raises(ValueError, match=f"token {token} is not one of the model's 340"):
            one.advance(one.start, token)


def test_refuses_too_few_tokens():
    one = grammar()
    assert one.allowed_V(one.start, 9).any()
    with pytest.raises(ValueError, match="takes at least 9 tokens, and 8 remain"):
        one.allowed_V(one.start, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rubrics": "none"}, "rubrics must be .* got 'none'"),
        ({"answer": "grade"}, "answer must be .* got 'grade'"),
        ({"max_decimals": -1}, "max_decimals=-1"),
        ({"max_decimals": 101}, "max_decimals=101"),
        ({"vocab_size": 25}, "no sequence of its 25 tokens is one"),  # "!" to "9": no "<"
    ],
)
def test_refuses_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        JudgmentGrammar(tokenizer("tags"), **{"vocab_size": 340} | changes)


# --- Qwen's vocabulary ------------------------------------------------------------------------------------------------

QWEN_SETTINGS = st.sampled_from([("adaptive", "score"), ("primary", "choice")])
needs_qwen = pytest.mark.skipif(not QWEN_FILE.is_file(), reason=f"needs Qwen3's tokenizer: {QWEN_FILE}")


@needs_qwen
@settings(max_examples=30)
@given(QWEN_SETTINGS, st.integers(0, 60), LIKED, st.integers(0, 2**32))
def test_every_walk_of_qwen_ends_in_a_judgment_in_time(setting, spare, liked, seed):
    assert_walks_end_in_judgments("qwen", setting, spare, liked, seed)


@needs_qwen
@settings(max_examples=50)
@given(QWEN_SETTINGS, st.data())
def test_every_judgment_of_qwen_is_accepted_token_by_token(setting, data):
    assert_accepted("qwen", setting, data.draw(judgments(setting)))
