"""Reward models that are a decoder of ours under other names: InternLM2-Reward and Eurus-RM, with their own templates.

InternLM2   internlm/internlm2-7b-reward: modeling_internlm2.py; InternLM: model_cards/internlm2_reward.md
Eurus       openbmb/Eurus-RM-7b; the template is RewardBench's (rewardbench/models/openbmb.py)

H query heads   K key/value heads   C head width   D model width
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from patarm_core.prompts import Message, Prompt
from rollout.chat import whole_chat
from rollout.contexts import read_text
from rollout.decoder import Decoder
from rollout.families import DecoderConfig
from rollout.vocabulary import load_tokenizer
from rollout.weights import named_tensors

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PublishedHead:
    """How a published model is read as one of ours."""

    config: Callable[[Raw], Raw]  # config.json, to that of a family of ours
    tensors: Callable[[str, Tensor, DecoderConfig], Iterator[tuple[str, Tensor]]]  # one of theirs, to some of ours
    tokens: Callable[[str, Raw, bool], Callable[[Prompt, str], list[int]]]  # (path, config.json, trust_remote_code)

    @torch.no_grad()
    def load(self, path: str, raw: Raw, dtype: torch.dtype, device: str) -> Decoder:
        """
        Raises:
            ValueError: one line naming the file and the tensor that is missing, unknown or of another shape.
        """
        try:
            config = DecoderConfig.from_hf(self.config(raw), is_scalar=True)
        except ValueError as error:
            raise ValueError(f"{Path(path) / 'config.json'}: {error}") from None
        with torch.device("meta"):
            decoder = Decoder(config).to(dtype)
        decoder.to_empty(device=device)
        wanted = dict(decoder.named_parameters())
        seen: set[str] = set()
        for file, theirs in named_tensors(Path(path)):
            with safe_open(file, framework="pt") as shard:
                for name, tensor in self.tensors(theirs, shard.get_tensor(theirs), config):
                    if name not in wanted or wanted[name].shape != tensor.shape:
                        here = list(wanted[name].shape) if name in wanted else "no such tensor"
                        raise ValueError(f"{file}: {theirs}: shape {list(tensor.shape)}, the model has {here}")
                    wanted[name].copy_(tensor)
                    seen.add(name)
        if missing := sorted(wanted.keys() - seen):
            raise ValueError(f"{path}: {missing[0]}: nothing in the safetensors files makes it")
        return decoder


def read_raw_config(path: str) -> Raw:
    file = Path(path) / "config.json"
    try:
        raw = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: not a JSON object")
    return raw


# InternLM2


def _internlm2_config(raw: Raw) -> Raw:
    if raw.get("bias"):
        raise ValueError("bias: true is not supported; false is")
    scaling = raw.get("rope_scaling") or {"type": "dynamic"}
    if scaling.get("type") != "dynamic":
        raise ValueError(f"rope_scaling.type: {scaling.get('type')!r} is not supported; 'dynamic' is")
    # Dynamic scaling changes nothing up to max_position_embeddings, and no longer text is scored.
    return _as(raw, "llama") | {"rope_scaling": None, "attention_bias": False}


_INTERNLM2 = {
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def _internlm2_tensors(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    name = name.removeprefix("model.").removesuffix(".weight")
    if name == "v_head":
        yield "score.weight", tensor
    elif name == "tok_embeddings":
        yield "embed_tokens.weight", tensor
    elif name.endswith("attention.wqkv"):
        # One group of rows for each key/value head: its queries, its key, its value.
        layer = name.removesuffix("attention.wqkv")
        K, C = config.num_key_value_heads, config.head_dim
        num_queries = config.num_attention_heads // K
        if tensor.shape[0] != K * (num_queries + 2) * C:
            raise ValueError(f"{name}: {tensor.shape[0]} rows, config.json makes {K * (num_queries + 2) * C}")
        rows_KGCD = tensor.unflatten(0, (K, num_queries + 2, C))
        yield f"{layer}self_attn.q_proj.weight", rows_KGCD[:, :num_queries].flatten(0, 2)
        yield f"{layer}self_attn.k_proj.weight", rows_KGCD[:, -2].flatten(0, 1)
        yield f"{layer}self_attn.v_proj.weight", rows_KGCD[:, -1].flatten(0, 1)
    elif name.startswith("layers."):
        _, number, part = name.split(".", 2)
        yield f"layers.{number}.{_INTERNLM2.get(part, part)}.weight", tensor
    else:
        yield f"{name}.weight", tensor


def _internlm2_tokens(path: str, raw: Raw, trust_remote_code: bool) -> Callable[[Prompt, str], list[int]]:
    tokenizer = _plain_tokenizer(path, trust_remote_code)
    reward_token = raw.get("reward_token_id", 92527)  # whose value is the score; the default is InternLM2's

    def tokens(prompt: Prompt, response: str) -> list[int]:
        chat = whole_chat(tokenizer, prompt, response, "the response")
        return chat if chat[-1:] == [reward_token] else [*chat, reward_token]

    return tokens


def _plain_tokenizer(path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in tokenizer.json; else the one that the directory has code for, where that is allowed."""
    if (Path(path) / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    if not trust_remote_code:
        raise ValueError(
            f"{path}: has no tokenizer.json, but code of its own for its tokenizer; read it, then allow it with "
            "--trust-remote-code"
        )
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=True)
    except Exception as error:  # it is anybody's code
        raise ValueError(f"{path}: the tokenizer's own code fails: {error}") from error


# Eurus


def _eurus_config(raw: Raw) -> Raw:
    longest, window = raw.get("max_position_embeddings"), raw.get("sliding_window")
    if type(window) is int and type(longest) is int:
        longest = min(window, longest)  # up to here a window hides nothing, and no longer text is scored
    return _as(raw, "mistral") | {"max_position_embeddings": longest, "sliding_window": None}


def _eurus_tensors(name: str, tensor: Tensor, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    yield "score.weight" if name == "regression_head.weight" else name.removeprefix("model."), tensor


def _eurus_tokens(path: str, raw: Raw, trust_remote_code: bool) -> Callable[[Prompt, str], list[int]]:
    tokenizer = load_tokenizer(path)

    def tokens(prompt: Prompt, response: str) -> list[int]:
        text = mistral_chat(prompt, response, tokenizer.eos_token or "</s>")
        ids = tokenizer.encode(text, add_special_tokens=False)
        return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]

    return tokens


def mistral_chat(prompt: Prompt, response: str, eos: str) -> str:
    """`[INST] question [/INST] answer</s>`, turn after turn; a system text stands before the first question."""
    turns = [Message("user", prompt)] if isinstance(prompt, str) else [Message(m.role, m.content) for m in prompt]
    text, system = "", ""
    for role, content in [*turns, ("assistant", response)]:
        if role in ("system", "developer"):
            system += f"{content}\n"
        elif role == "assistant":
            text += f" {content}{eos}"
        else:
            text += f"[INST] {system}{content} [/INST]"
            system = ""
    return text


def _as(raw: Raw, model_type: str) -> Raw:
    return {**raw, "model_type": model_type, "architectures": None, "id2label": None, "num_labels": 1}


HEADS = {
    "InternLM2ForRewardModel": PublishedHead(_internlm2_config, _internlm2_tensors, _internlm2_tokens),
    "EurusRewardModel": PublishedHead(_eurus_config, _eurus_tensors, _eurus_tokens),
}
