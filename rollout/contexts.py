"""From a (prompt, response) to the token ids that a judge reads: template, chat format, tokens, length limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from patarm_core.judgment import JudgeMode, RubricSetting
from patarm_core.pairs import ChoiceExample, Example, Pair, read_choice_judgments, read_judgments, read_pairs
from patarm_core.prompts import Prompt, Template, pairwise, pointwise
from patarm_core.rubrics import RubricBook, default_rubrics, parse_rubrics


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """How a judge is asked."""

    rubrics: RubricSetting = "adaptive"  # table 4
    template: Literal["full", "bare"] = "full"
    rubrics_file: str = ""  # primary rubrics; empty: those of the paper
    max_context_tokens: int = 8192

    def __post_init__(self) -> None:
        for name, known in (("rubrics", get_args(RubricSetting)), ("template", get_args(Template))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        if self.max_context_tokens < 1:
            raise ValueError(f"max_context_tokens={self.max_context_tokens} must be at least 1")


def load_rubrics(file: str) -> RubricBook:
    return parse_rubrics(read_text(file), file) if file else default_rubrics()


def read_text(file: str | Path) -> str:
    """The text of a file; a ValueError of one line if it cannot be read or is not UTF-8."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}") from None


def load_pairs(file: str | Path, book: RubricBook) -> list[Pair]:
    """Of a file, or of a folder of them, such as trainer/main.py curate leaves."""
    pairs: list[Pair] = []
    first: dict[tuple[str, str], Path] = {}
    for shard in _shards(file):
        read = read_pairs(read_text(shard).split("\n"), str(shard), book.tasks)
        for pair in read:
            if (other := first.setdefault((pair.source, pair.id), shard)) != shard:
                raise ValueError(f"{shard}: id: {pair.id!r} of source {pair.source!r} is already used in {other}")
        pairs += read
    return pairs


def load_judgments(file: str | Path, book: RubricBook, mode: JudgeMode = "pointwise") -> list[Example]:
    """Of a file or a folder of them."""
    read = read_judgments if mode == "pointwise" else read_choice_judgments
    return [row for shard in _shards(file) for row in read(read_text(shard).split("\n"), str(shard), book.tasks)]


def _shards(file: str | Path) -> list[Path]:
    """The file itself, or the files of a folder whose names end in .jsonl, in the order of their names."""
    if not Path(file).is_dir():
        return [Path(file)]
    shards = sorted(Path(file).glob("*.jsonl"))
    if not shards:
        raise ValueError(f"{file}: the folder holds no file that ends in .jsonl")
    return shards


@dataclass(frozen=True, slots=True)
class ContextBuilder:
    """Renders judge contexts for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    config: PromptConfig
    book: RubricBook = field(repr=False)

    def pointwise(self, prompt: Prompt, response: str, task: str, name: str) -> list[int]:
        """Token ids of one pointwise context, ending where the judge begins to write.

        Raises:
            ValueError: the context is longer than `max_context_tokens`; `name` says which item.
        """
        text = pointwise(prompt, response, task, self.book, rubrics=self.config.rubrics, template=self.config.template)
        return self._token_ids(text, f"{name}: prompt and response make")

    def pairwise(self, prompt: Prompt, response_a: str, response_b: str, task: str, name: str) -> list[int]:
        """Token ids of one context in which the judge chooses between two responses; errors as in `pointwise`."""
        text = pairwise(
            prompt, response_a, response_b, task, self.book, rubrics=self.config.rubrics, template=self.config.template
        )
        return self._token_ids(text, f"{name}: prompt and responses make")

    def sides(self, pair: Pair) -> tuple[list[int], list[int]]:
        """The contexts of the chosen and of the rejected response."""
        name = f"pair {pair.id} of {pair.source}"
        return tuple(self.pointwise(pair.prompt, side, pair.task, name) for side in (pair.chosen, pair.rejected))

    def of_example(self, example: Example) -> list[int]:
        """The context of a row of SFT."""
        name = f"judgment {example.id} of {example.source}"
        if isinstance(example, ChoiceExample):
            return self.pairwise(example.prompt, example.response_a, example.response_b, example.task, name)
        return self.pointwise(example.prompt, example.response, example.task, name)

    def longest(self, pair: Pair, mode: JudgeMode) -> int:
        """Tokens of the longest context in which the pair may be judged."""
        if mode == "pointwise":
            return max(map(len, self.sides(pair)))
        name = f"pair {pair.id} of {pair.source}"
        orders = (pair.chosen, pair.rejected), (pair.rejected, pair.chosen)
        return max(len(self.pairwise(pair.prompt, a, b, pair.task, name)) for a, b in orders)

    def _token_ids(self, text: str, makes: str) -> list[int]:
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        token_ids = self.tokenizer.encode(chat, add_special_tokens=False)
        if len(token_ids) > self.config.max_context_tokens:
            raise ValueError(
                f"{makes} a context of {len(token_ids)} tokens; "
                f"prompt.max_context_tokens is {self.config.max_context_tokens}"
            )
        return token_ids
