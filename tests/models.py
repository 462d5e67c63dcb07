"""Small random models and a tokenizer, shared by the tests of rollout and trainer."""

from functools import cache

import torch
from transformers import PreTrainedTokenizerFast

from rollout.decoder import Decoder, DecoderConfig, init_weights_
from trainer.tiny import make_tokenizer


def config(**changes) -> DecoderConfig:
    """Grouped heads, and a head width that is not hidden_size / heads."""
    shape = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 512,
    }
    return DecoderConfig(**shape | changes)


@torch.no_grad()
def random_decoder(decoder_config: DecoderConfig, seed: int = 0, std: float = 0.15) -> Decoder:
    """Random matrices, and norm weights around 1 that show when one is left out or misplaced."""
    decoder = init_weights_(Decoder(decoder_config), seed, std)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    return decoder.eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, 340 tokens: the bytes, the tags, and a few words."""
    return make_tokenizer(["the answer is here, then there: 7.5 of 10. The other answer is not."] * 20, 340)
