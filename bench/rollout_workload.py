"""What the engines are asked to write, and to what: contexts of a judge, and a length for each of its judgments.

Lengths are imposed, drawn once from a skewed distribution, because a random model has no reason to stop. Every engine
writes the same number of tokens to the same contexts, and none of them knows a length before it is reached.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from math import exp
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from patarm_core.embedded.splits import EmbeddedConfig, make_splits
from patarm_core.pairs import Pair
from patarm_core.prompts import pointwise
from rollout.contexts import ContextBuilder, PromptConfig, load_pairs, load_rubrics, read_text
from trainer.tiny import make_tokenizer

# Tokens of a judgment: log-normal, median 240 and 95th percentile 800, clipped.
MEDIAN, SIGMA, LEAST, MOST = 240, 0.732, 32, 1600
_RUBRICS = Path(__file__).parent.parent / "patarm_core" / "embedded" / "rubrics.toml"


@dataclass(frozen=True, slots=True)
class Work:
    name: str
    contexts: list[list[int]]
    lengths: list[tuple[int, ...]]  # new tokens of each sample, context by context; the same number of samples of each

    @property
    def num_new_tokens(self) -> int:
        return sum(map(sum, self.lengths))

    @property
    def num_context_tokens(self) -> int:
        return sum(map(len, self.contexts))

    @property
    def num_distinct_tokens(self) -> int:
        """Of the contexts as one tree: what has to be computed at least."""
        ordered = sorted(self.contexts)
        return self.num_context_tokens - sum(num_shared(a, b) for a, b in pairwise(ordered))

    @property
    def num_common_tokens(self) -> int:
        """With which all contexts begin."""
        return num_shared(min(self.contexts), max(self.contexts))

    def turned(self, turn: int, vocab_size: int) -> Work:
        """The same work in other tokens, so that no engine finds keys and values of an earlier turn.

        A bijection of the vocabulary: what contexts share, they still share.
        """
        moved = [[(token + 37 * turn) % vocab_size for token in context] for context in self.contexts]
        return replace(self, contexts=moved)


def judging(contexts: list[list[int]], num_rollouts: int, shorten: int, vocab_size: int) -> Work:
    """The judgments of a step: `num_rollouts` of every context, of lengths that nobody knows before.

    Args:
        contexts: both sides of each pair, token ids of any vocabulary.
        shorten: divides the lengths of contexts and judgments alike, for machines that are slow.
    """
    rng = Random(0)
    shortened = [folded(context[shorten - 1 :: shorten], vocab_size) for context in contexts]
    lengths = [tuple(_draw_length(rng, shorten) for _ in range(num_rollouts)) for _ in contexts]
    return Work("judging", shortened, lengths)


def static(num_contexts: int, context_length: int, num_new: int, vocab_size: int) -> Work:
    """Nothing to gain: contexts of one length that share nothing, one sample of each, all equally long."""
    rng = Random(1)
    contexts = [[rng.randrange(vocab_size) for _ in range(context_length)] for _ in range(num_contexts)]
    return Work("static", contexts, [(num_new,)] * num_contexts)


def num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


def folded(token_ids: list[int], vocab_size: int) -> list[int]:
    """Token ids hashed into a smaller vocabulary (Knuth's multiplicative hash): equal ids stay equal."""
    return [((token * 2654435761) % (1 << 32)) * vocab_size >> 32 for token in token_ids]


def judge_contexts(data: Path | None, tokenizer_file: Path | None, num_pairs: int) -> list[list[int]]:
    """Contexts of both sides of pairs, adaptive rubrics in the full template.

    Args:
        data: RM-Bench's JSON, or pairs as JSON lines; None: the embedded preference set.
        tokenizer_file: a `tokenizer.json`; None: a small tokenizer made of the contexts themselves.
    """
    if num_pairs < 1:
        raise ValueError(f"--pairs must be at least 1, got {num_pairs}")
    if data is None:
        sizes = EmbeddedConfig(num_sft_pairs=50, num_rl_pairs=num_pairs, num_dev_pairs=0, num_held_out_pairs=0)
        pairs, book = make_splits(sizes).rl, load_rubrics(str(_RUBRICS))
    else:
        book = load_rubrics("")
        pairs = rmbench_pairs(data) if data.suffix == ".json" else load_pairs(data, book)
    if len(pairs) < num_pairs:
        raise ValueError(f"{data}: {len(pairs)} pairs; --pairs {num_pairs} asks for more")
    pairs = pairs[:num_pairs]
    if tokenizer_file is None:
        tokenizer = make_tokenizer([pointwise(pair.prompt, pair.chosen, pair.task, book) for pair in pairs], 1024)
    else:
        tokenizer = _tokenizer(tokenizer_file)
    builder = ContextBuilder(tokenizer, PromptConfig(), book)
    return [context for pair in pairs for context in builder.sides(pair)]


def rmbench_pairs(file: Path) -> list[Pair]:
    """One pair of each row of RM-Bench, of its three styles in turn, both sides in the same style."""
    try:
        rows = json.loads(read_text(file))
        return [
            Pair(
                prompt=row["prompt"], chosen=row["chosen"][i % 3], rejected=row["rejected"][i % 3],
                task="chat", source="rmbench", id=str(row["id"]),
            )
            for i, row in enumerate(rows)
        ]  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{file}: not RM-Bench's rows of prompt, chosen[3], rejected[3]: {error!r}") from None


def _tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """A tokenizer.json holds no chat format: that of our small tokenizers is Qwen's too."""
    chat_template = make_tokenizer([""], 300).chat_template
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file), chat_template=chat_template)
    except Exception as error:  # the tokenizers library raises nothing more special on a file it cannot read
        raise ValueError(f"{file}: the tokenizer cannot be read: {error}") from None


def _draw_length(rng: Random, shorten: int) -> int:
    length = MEDIAN * exp(SIGMA * rng.gauss(0, 1))
    return round(min(max(length, LEAST), MOST) / shorten)
