"""Scalar reward models as judges: a Bradley-Terry model of ours, or a published one with its own head and template.

    …ForSequenceClassification, one label   Skywork-Reward (Llama), BT models (Qwen3, Qwen2.5, Mistral): our decoder
    InternLM2ForRewardModel, EurusRewardModel   our decoder, after eval/judges/published_heads.py
    all else   transformers' modelling code, after eval/judges/foreign.py

Nothing is sampled: every vote of a response is the same score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from eval.judges.foreign import load_foreign
from eval.judges.judge import Drawn, Mode, Question
from eval.judges.published_heads import HEADS, read_raw_config
from patarm_core.prompts import Prompt
from rollout.chat import whole_chat
from rollout.decoder import Decoder
from rollout.families import FAMILIES
from rollout.questions import read_prompt, read_response
from rollout.scalar import load_scalar, score_all
from rollout.vocabulary import load_tokenizer

Tokens = Callable[[Prompt, str], list[int]]  # of a whole conversation, as the model reads it
CHUNK = 32  # responses that are scored, and told, together


@dataclass(frozen=True, kw_only=True)
class ScalarJudge:
    tokens: Tokens = field(repr=False)
    scores: Callable[[Sequence[Sequence[int]]], list[float]] = field(repr=False)
    limit: int  # tokens that the model reads
    model: str  # names the weights
    name: str
    mode: Mode = "pointwise"

    @property
    def fingerprint(self) -> dict[str, object]:
        return {"model": self.model, "form": "scalar", "limit": self.limit}

    def judge(self, questions: Sequence[Question], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        for question in questions:
            if len(question.responses) != 1:
                raise ValueError(f"question {question.id}: has {len(question.responses)} responses; one is scored")
        asked: list[tuple[int, list[int]]] = []
        for index, question in enumerate(questions):
            try:
                asked.append((index, self._tokens(question)))
            except ValueError as error:
                yield index, [Drawn(error=f"unasked: {error}")] * votes
            if len(asked) == CHUNK:
                yield from self._drawn(asked, votes)
                asked = []
        yield from self._drawn(asked, votes)

    def _tokens(self, question: Question) -> list[int]:
        tokens = self.tokens(read_prompt(question.prompt), read_response(question.responses[0]))
        if not 0 < len(tokens) <= self.limit:
            raise ValueError(f"the conversation has {len(tokens)} tokens; the model scores 1 to {self.limit}")
        return tokens

    def _drawn(self, asked: Sequence[tuple[int, list[int]]], votes: int) -> Iterator[tuple[int, list[Drawn]]]:
        found = self.scores([tokens for _, tokens in asked])
        for (index, _), score in zip(asked, found, strict=True):
            is_finite = math.isfinite(score)
            drawn = Drawn(score=score) if is_finite else Drawn(error=f"not finite: the model gives {score}")
            yield index, [drawn] * votes


def open_scalar(path: str, model: str, dtype: str, trust_remote_code: bool = False) -> ScalarJudge:
    """The judge of a Hugging Face directory.

    Raises:
        ValueError: one line; no model with one score, or one that needs code which was not allowed.
    """
    raw = read_raw_config(path)
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else ""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    judge = partial(ScalarJudge, model=model, name=f"{Path(path).resolve().name} (scalar)")
    if name in HEADS:
        head = HEADS[name]
        decoder = head.load(path, raw, kind, device)
        return judge(tokens=head.tokens(path, raw, trust_remote_code), **_ours(decoder))
    if name in [f"{family.name}ForSequenceClassification" for family in FAMILIES.values()]:
        tokens = partial(whole_chat, load_tokenizer(path), name="the response")
        return judge(tokens=tokens, **_ours(load_scalar(path, kind, device)))
    foreign = load_foreign(path, raw, kind, device, trust_remote_code)
    tokens = partial(whole_chat, foreign.tokenizer, name="the response")
    return judge(tokens=tokens, scores=foreign.scores, limit=foreign.limit)


def _ours(decoder: Decoder) -> dict:
    decoder.eval()
    return {"scores": partial(score_all, decoder), "limit": decoder.config.max_position_embeddings}
