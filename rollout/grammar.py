"""A grammar mask: while decoding, only tokens that keep a judgment well-formed and let it end in time.

The judgments let through are those that `patarm_core.judgment.parse` reads without an error, less some it would also
read: outside the blocks only white space (" ", tab, newline, carriage return), nothing around the answer, no leading
zeros, at most `max_decimals` decimals. The mask changes the distribution that tokens are drawn from, so it is for
evaluation: training on it would reward a format that the policy did not write.

It is an automaton over characters, lifted to tokens. Most of a vocabulary acts alike (every word without "<" is just
text), so tokens are grouped by where they lead from each state, and all else is computed per group.

The text of a token must not depend on its neighbours where it is ASCII. That holds for byte-level tokenizers, as
Qwen's is; an incomplete character among them is text like any other.

    S states   G groups of tokens   V vocabulary
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from patarm_core.judgment import JUDGMENT_TAGS, AnswerKind, RubricSetting, judgment_tags
from rollout.vocabulary import special_token_ids, token_texts

_TAGS = [f"<{slash}{name}>" for name in JUDGMENT_TAGS for slash in ("", "/")]
_SPACE, _DIGITS = " \t\r\n", "0123456789"
# All characters that any state tells apart; the last stands for the others.
_CHARACTERS = "".join(sorted({*_SPACE, *_DIGITS, *".AB", *"".join(_TAGS)})) + "\ufffd"
_NONE = -1  # the state of what no continuation makes a judgment
_UNREACHED = 1 << 14  # more tokens than any shortest completion has
_NUM_MASKS = 256  # kept; 37 MiB of Qwen's


class JudgmentGrammar:
    """Says which tokens may come next in a judgment. States are small integers.

    Args:
        tokenizer: a byte-level one.
        vocab_size: of the model; ids beyond the tokenizer's are never allowed.
        rubrics: the rubric setting of the prompt.
        answer: "score" for pointwise judgments, "choice" for pairwise ones.
        max_decimals: of a score.

    Raises:
        ValueError: a setting is unknown, or no sequence of the tokenizer's tokens is a judgment.
    """

    start = 0  # the state of an empty completion

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        rubrics: RubricSetting = "adaptive",
        answer: AnswerKind = "score",
        max_decimals: int = 2,
    ) -> None:
        self._tokenizer = tokenizer
        end_ids = [token_id for token_id in special_token_ids(tokenizer) if token_id < vocab_size]
        to_SC, self._end_state = _tabulate(_Characters(rubrics, answer, max_decimals, space_at_end=not end_ids))
        pieces = token_texts(tokenizer, vocab_size)
        for token_id in end_ids:
            pieces[token_id] = ""
        self._group_V, next_GS = _group(pieces, to_SC)
        ending_S = np.full(len(to_SC), _NONE)  # tokens that end a completion write nothing and come last
        ending_S[self._end_state] = self._end_state
        self._group_V[end_ids] = len(next_GS)
        self._next_SG = np.vstack((next_GS, ending_S)).T.copy()
        self._shortest_S = _shortest(self._next_SG, self._end_state)
        if self._shortest_S[self.start] >= _UNREACHED:
            raise ValueError(f"the tokenizer cannot write a judgment: no sequence of its {vocab_size} tokens is one")
        # Tokens that still are needed after a token of each group; what cannot be completed is not begun.
        self._rest_SG = np.where(self._next_SG == _NONE, _UNREACHED, self._shortest_S[self._next_SG])
        self._next_SG[self._rest_SG >= _UNREACHED] = _NONE
        # A mask changes with the tokens that remain only where one of these is passed.
        self._levels_S = [[int(rest) for rest in np.unique(rest_G) if rest < _UNREACHED] for rest_G in self._rest_SG]
        self._mask_V = lru_cache(_NUM_MASKS)(self._compute_mask_V)

    def advance(self, state: int, token_id: int) -> int:
        """The state after a token. Raises ValueError if the token is not allowed, whatever number of tokens remains."""
        if not 0 <= token_id < len(self._group_V):
            raise ValueError(f"token {token_id} is not one of the model's {len(self._group_V)}")
        next_state = int(self._next_SG[state, self._group_V[token_id]])
        if next_state == _NONE:
            piece = self._tokenizer.decode([token_id])
            raise ValueError(f"token {token_id} ({piece!r}) cannot come next in a judgment")
        return next_state

    def allowed_V(self, state: int, remaining: int) -> np.ndarray:
        """bool [V], read-only: the tokens after which a judgment can be completed within `remaining` tokens.

        Args:
            state: what `advance` returned, or `start`. A complete judgment lets only the tokenizer's special tokens
                follow, or white space where there are none.
            remaining: tokens that may still be sampled, the one being chosen included.

        Raises:
            ValueError: too few tokens remain to complete a judgment.
        """
        num_levels = bisect_right(self._levels_S[state], remaining - 1)
        if num_levels == 0:
            least = max(1, self.shortest(state))
            raise ValueError(f"completing the judgment takes at least {least} tokens, and {remaining} remain")
        return self._mask_V(state, self._levels_S[state][num_levels - 1])

    def is_complete(self, state: int) -> bool:
        """`</answer>` is written."""
        return state == self._end_state

    def shortest(self, state: int) -> int:
        """The fewest tokens that complete a judgment from here."""
        return int(self._shortest_S[state])

    def _compute_mask_V(self, state: int, most_rest: int) -> np.ndarray:
        mask_V = (self._rest_SG[state] <= most_rest)[self._group_V]
        mask_V.flags.writeable = False
        return mask_V


class _Characters:
    """The automaton over characters. A state is (stage, what is written so far of the stage's tag or answer)."""

    def __init__(self, rubrics: RubricSetting, answer: AnswerKind, max_decimals: int, space_at_end: bool) -> None:
        self._stages: list[tuple[str, str]] = []  # (what may stand here, the tag that ends it)
        for name in judgment_tags(rubrics):
            self._stages += [("space", f"<{name}>"), ("answer" if name == "answer" else "text", f"</{name}>")]
        self._answers = _answers(answer, max_decimals)
        self._answer_starts = {text[:end] for text in self._answers for end in range(len(text) + 1)}
        self._space_at_end = space_at_end
        self.start, self.end = (0, ""), (len(self._stages), "")

    def step(self, state: tuple[int, str], character: str) -> tuple[int, str] | None:
        if state == self.end:
            return state if self._space_at_end and character in _SPACE else None
        stage, written = state
        kind, tag = self._stages[stage]
        longer = written + character
        if longer == tag:
            return stage + 1, ""
        if kind == "text":
            if longer in _TAGS:
                return None
            if any(known.startswith(longer) for known in _TAGS):
                return stage, longer
            return stage, "<" if character == "<" else ""  # "<" is only ever the first character of a tag
        if kind == "answer" and written in self._answer_starts:
            if written in self._answers and character == "<":
                return stage, "<"
            symbols = (character, "#") if character in _DIGITS else (character,)
            return next(((stage, written + x) for x in symbols if written + x in self._answer_starts), None)
        if tag.startswith(longer):
            return stage, longer
        return state if kind == "space" and not written and character in _SPACE else None


def _answers(answer: AnswerKind, max_decimals: int) -> set[str]:
    """All answers, "#" (none of `_CHARACTERS`) for any digit that is not spelled out."""
    if answer not in ("score", "choice"):
        raise ValueError(f"answer must be 'score' or 'choice', got {answer!r}")
    if not 0 <= max_decimals <= 100:  # each is a few states
        raise ValueError(f"max_decimals={max_decimals} must be in [0, 100]")
    if answer == "choice":
        return {"A", "B"}
    wholes = (("1", "#"), ("#", "#"), ("10", "0"))  # "1" apart, because "10" goes on from it
    return {
        whole + ("." + decimal * num_decimals if num_decimals else "")
        for whole, decimal in wholes
        for num_decimals in range(max_decimals + 1)
    }


def _tabulate(automaton: _Characters) -> tuple[np.ndarray, int]:
    """The reachable states as integers, the first the start: [S, C] the state after each of `_CHARACTERS`, the end."""
    states = [automaton.start]
    number = {automaton.start: JudgmentGrammar.start, None: _NONE}
    rows = []
    for state in states:  # it grows meanwhile
        rows.append([automaton.step(state, character) for character in _CHARACTERS])
        for found in rows[-1]:
            if found not in number:
                number[found] = len(states)
                states.append(found)
    return np.array([[number[found] for found in row] for row in rows]), number[automaton.end]


def _group(pieces: list[str], to_SC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of every token, and [G, S] the state that its tokens lead to: a group is a map from states to states.

    Maps are made character by character, and each (map, character) once: a vocabulary has few of them.
    """
    num_states, character_C = len(to_SC), {character: i for i, character in enumerate(_CHARACTERS)}
    to_CS = np.vstack((to_SC, np.full(to_SC.shape[1], _NONE))).T.astype(np.int16)  # from _NONE, the last, to _NONE
    maps = [np.arange(num_states, dtype=np.int16), np.full(num_states, _NONE, dtype=np.int16)]
    number = {one.tobytes(): i for i, one in enumerate(maps)}
    after: dict[tuple[int, int], int] = {}
    group_V = np.empty(len(pieces), dtype=np.int32)
    for token, piece in enumerate(pieces):
        group = 0
        for character in piece:
            step = group, character_C.get(character, len(_CHARACTERS) - 1)
            if step not in after:
                to_S = to_CS[step[1]][maps[group]]
                after[step] = number.setdefault(to_S.tobytes(), len(maps))
                if after[step] == len(maps):
                    maps.append(to_S)
            group = after[step]
        group_V[token] = group if piece else 1  # an empty token would be no progress
    used_G, group_V = np.unique(group_V, return_inverse=True)  # the others are maps of beginnings of tokens
    return group_V, np.stack(maps)[used_G]


def _shortest(next_SG: np.ndarray, end_state: int) -> np.ndarray:
    """The fewest tokens from each state to the end, `_UNREACHED` where there is no way."""
    shortest_S = np.full(len(next_SG), _UNREACHED)
    shortest_S[end_state] = 0
    while True:
        rest_SG = np.where(next_SG == _NONE, _UNREACHED, shortest_S[next_SG])
        better_S = np.minimum(shortest_S, rest_SG.min(1) + 1)
        if (better_S == shortest_S).all():
            return shortest_S
        shortest_S = better_S
