"""Scalar reward models: a decoder whose head gives one value per token; a text's score is the value at its last.

Where a text ends is known from its length and never looked for: a padding token may also be a text's own last token.

    B sequences   T positions   D model width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from rollout.decoder import Decoder, DecoderConfig, Readout, causal_attention
from rollout.families import is_reward_model
from rollout.weights import load_decoder


def load_scalar(path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Decoder:
    """The reward model of a Hugging Face directory: …ForSequenceClassification of a known family, with one label."""
    return load_decoder(path, dtype, device, is_scalar=True)


@dataclass(frozen=True, slots=True)
class RewardHead:
    """What a language model lacks to be a reward model."""

    seed: int  # of the head that is drawn
    pad_token_id: int | None  # without one, transformers scores no batch of texts; a config that has its own keeps it

    def config(self, path: str | Path) -> tuple[DecoderConfig, bool]:
        """The shape of the reward model that starts from a directory, and whether its head is there already.

        Raises:
            ValueError: one line, as of `DecoderConfig.from_pretrained`.
        """
        is_there = is_reward_model(path)
        config = DecoderConfig.from_pretrained(path, is_scalar=is_there)
        pad = self.pad_token_id if config.pad_token_id is None else config.pad_token_id
        return replace(config, is_scalar=True, pad_token_id=pad), is_there

    @torch.no_grad()
    def draw_(self, decoder: Decoder) -> None:
        """Fills the head, sharded or not, from N(0, 1 / (D + 1)) (arXiv:2009.01325, arXiv:2403.17031)."""
        head_1D = decoder.score.weight
        D = head_1D.shape[1]
        drawn_1D = torch.randn(1, D, generator=torch.Generator().manual_seed(self.seed)) * (D + 1) ** -0.5
        if isinstance(head_1D, DTensor):
            # All ranks have drawn the same, and each takes its part: no collective, where a peer may have failed.
            drawn_1D = distribute_tensor(
                drawn_1D.to(head_1D.device), head_1D.device_mesh, head_1D.placements, src_data_rank=None
            )
        head_1D.copy_(drawn_1D)


def last_values(length_B: Tensor) -> Readout:
    """The readout of one value per sequence, at its last token; float32 or better, so that bfloat16 makes no ties."""

    def readout(hidden_BTD: Tensor, head_1D: Tensor) -> Tensor:
        last_BD = hidden_BTD[torch.arange(len(length_B), device=length_B.device), length_B - 1]
        dtype = torch.promote_types(last_BD.dtype, torch.float32)
        return last_BD.to(dtype) @ head_1D[0].to(dtype)

    return readout


def scores(decoder: Decoder, sequences: Sequence[Sequence[int]]) -> Tensor:
    """score_B of these token ids in one forward pass, right-padded; gradients flow."""
    device = next(decoder.parameters()).device
    length_B = torch.tensor([len(tokens) for tokens in sequences], device=device)
    # Causal attention lets no token see the padding after it, whichever token that is.
    token_BT = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row_T, tokens in zip(token_BT, sequences, strict=True):
        row_T[: len(tokens)] = torch.tensor(tokens)
    position_BT = torch.arange(token_BT.shape[1], device=device).expand_as(token_BT)
    return decoder(token_BT.to(device), position_BT, causal_attention, last_values(length_B))


@torch.inference_mode()
def score_all(decoder: Decoder, sequences: Sequence[Sequence[int]], max_tokens: int = 16_384) -> list[float]:
    """Scores of any number of sequences, in their order, in batches of at most `max_tokens` with their padding.

    Raises:
        ValueError: a sequence that is empty, too long for the model, or has a token that the model does not know.
    """
    limit, V = decoder.config.max_position_embeddings, decoder.config.vocab_size
    for index, tokens in enumerate(sequences):
        if not 0 < len(tokens) <= limit:
            raise ValueError(f"sequence {index} has {len(tokens)} tokens; the model scores 1 to {limit}")
        if not 0 <= min(tokens) <= max(tokens) < V:
            wrong = next(token for token in tokens if not 0 <= token < V)
            raise ValueError(f"sequence {index} has token {wrong}; the model has {V} tokens")
    found = [0.0] * len(sequences)
    for batch in _batches([len(tokens) for tokens in sequences], max_tokens):
        for index, score in zip(batch, scores(decoder, [sequences[i] for i in batch]).tolist(), strict=True):
            found[index] = score
    return found


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices, longest first, so that neighbours need little padding; at least one each."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
