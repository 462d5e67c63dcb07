"""Scalar reward models that our decoder does not compute, such as Skywork-Reward-Gemma-2: by transformers' own code.

The one place outside of tests and bench where transformers' models run. One response at a time: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from rollout.vocabulary import load_tokenizer


@dataclass(frozen=True, slots=True)
class Foreign:
    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    limit: int  # tokens

    @torch.inference_mode()
    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        device = next(self.model.parameters()).device
        found = []
        for tokens in sequences:
            token_BT = torch.tensor([tokens], device=device)
            output = self.model(input_ids=token_BT, attention_mask=torch.ones_like(token_BT))
            value = output.logits if hasattr(output, "logits") else output[0] if isinstance(output, tuple) else output
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(f"the model gives {shape} for one response; a reward model gives one number")
            found.append(float(value))
        return found


def load_foreign(
    path: str, raw: dict[str, Any], dtype: torch.dtype, device: str, trust_remote_code: bool = False
) -> Foreign:
    """
    Raises:
        ValueError: no reward model that transformers knows, or one with code of its own that was not allowed.
    """
    architectures = raw.get("architectures")
    is_known = any(str(name).endswith("ForSequenceClassification") for name in architectures or [])
    has_code = bool(raw.get("auto_map"))
    if has_code and not trust_remote_code:
        raise ValueError(
            f"{path}: {architectures} needs code that the directory holds; read it, then allow it with "
            "--trust-remote-code"
        )
    if not is_known and not has_code:
        raise ValueError(
            f"{path}: {architectures} is no reward model with one score; …ForSequenceClassification with one label is, "
            "or a directory with code of its own"
        )
    loader = transformers.AutoModelForSequenceClassification if is_known else transformers.AutoModel
    # Gemma 2 caps its attention scores, which sdpa leaves out (allenai/reward-bench, issue 169).
    attention = {"attn_implementation": "eager"} if raw.get("model_type") == "gemma2" else {}
    try:
        model = loader.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=trust_remote_code, **attention
        )
    except Exception as error:  # of transformers, or of code that is anybody's
        raise ValueError(f"{path}: transformers cannot load it: {str(error)[:300]}") from error
    if is_known and model.config.num_labels != 1:
        raise ValueError(f"{path}: has {model.config.num_labels} labels; a reward model has 1")
    text_config = model.config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None) or 1 << 31
    return Foreign(model.eval().to(device), load_tokenizer(path), limit)
