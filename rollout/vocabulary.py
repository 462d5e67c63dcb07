"""What the engine needs to know of a tokenizer. V vocabulary"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rollout.text_files import naming


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory; never asks a hub."""
    if not Path(path).is_dir():
        raise ValueError(f"{path}: no such folder; a model is a Hugging Face directory with its tokenizer")
    if not any((Path(path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{path}: no tokenizer.json; a model directory holds its tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more special on a file it cannot read
        raise ValueError(f"{path}: the tokenizer cannot be read: {error}") from error


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    with naming(Path(path), Exception):  # likewise on one it cannot write
        tokenizer.save_pretrained(path)


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Control tokens of the chat format, the end token among them: whichever is sampled ends a completion."""
    ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(ids | ({tokenizer.eos_token_id} - {None}))


def token_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """The text of every token after another one: some tokenizers drop the space before a first word."""
    before = tokenizer.encode("a", add_special_tokens=False)
    num_before = len(tokenizer.decode(before))
    texts = tokenizer.batch_decode([before + [token] for token in range(vocab_size)])
    return [text[num_before:] for text in texts]
