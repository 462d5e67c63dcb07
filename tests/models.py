"""Small random models and a tokenizer, shared by the tests of rollout and trainer."""

from functools import cache

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

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
    """Random matrices; norm weights around 1, and biases, that show when one is left out or misplaced."""
    decoder = init_weights_(Decoder(decoder_config), seed, std)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            middle = 0.0 if name.endswith("bias") else 1.0
            parameter.copy_(middle + 0.5 * torch.randn(parameter.shape, generator=generator))
    return decoder.eval()


def transformers_twin(decoder: Decoder, attention: str = "eager") -> PreTrainedModel:
    """transformers' model with the same weights, by its own names, none missing or left over."""
    auto = AutoModelForSequenceClassification if decoder.config.is_scalar else AutoModelForCausalLM
    # The type from the start: `.to(bfloat16)` would round its rotary frequencies, which no checkpoint's are.
    twin = auto.from_config(
        AutoConfig.for_model(**decoder.config.to_hf()), attn_implementation=attention, dtype=decoder.norm.weight.dtype
    )
    weights = {
        name if name.startswith(("lm_head", "score")) else f"model.{name}": tensor
        for name, tensor in decoder.state_dict().items()
    }
    twin.load_state_dict(weights, strict=True)
    return twin.eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, 340 tokens: the bytes, the tags, and a few words."""
    return make_tokenizer(["the answer is here, then there: 7.5 of 10. The other answer is not."] * 20, 340)
