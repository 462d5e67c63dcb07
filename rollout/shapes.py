"""Shapes of published models, for what is computed or measured without their weights."""

from __future__ import annotations

import re

from rollout.families import DecoderConfig

_QWEN3 = {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
QWEN3 = {
    "Qwen3-1.7B": DecoderConfig(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
        tie_word_embeddings=True, **_QWEN3,
    ),
    "Qwen3-4B": DecoderConfig(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        tie_word_embeddings=True, **_QWEN3,
    ),
    "Qwen3-8B": DecoderConfig(
        hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32, **_QWEN3
    ),
    "Qwen3-14B": DecoderConfig(
        hidden_size=5120, intermediate_size=17_408, num_hidden_layers=40, num_attention_heads=40, **_QWEN3
    ),
}  # fmt: skip


def shape_named_in(path: str) -> tuple[str, DecoderConfig] | None:
    """The model that a path names, such as Qwen/Qwen3-8B or runs/qwen3_8b_sft/models/sft; the last one of several."""
    found = re.findall(r"qwen3[-_]?(\d+(?:\.\d+)?)b(?![a-z0-9])", path.lower())
    names = [name for size in found if (name := f"Qwen3-{size}B") in QWEN3]
    return (names[-1], QWEN3[names[-1]]) if names else None
