"""The families of decoders, and the shape of one, read from and written to `config.json` of Hugging Face directories.

What this decoder would compute wrongly is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from rollout.rope import SCALINGS, RopeScaling, check_positive

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What sets one `model_type` apart from the others."""

    name: str  # transformers' classes are <name>ForCausalLM and <name>ForSequenceClassification
    has_qk_norm: bool = False  # RMSNorm over each head's queries and keys
    has_qkv_bias: bool = False
    fixed: Mapping[str, Any]  # fields of its config.json of which this decoder supports one value only


FAMILIES = {
    "qwen3": Family(name="Qwen3", has_qk_norm=True, fixed={"attention_bias": False, "use_sliding_window": False}),
    "qwen2": Family(name="Qwen2", has_qkv_bias=True, fixed={"use_sliding_window": False}),  # Qwen2.5 too
    "llama": Family(name="Llama", fixed={"attention_bias": False, "mlp_bias": False}),
    "mistral": Family(name="Mistral", fixed={"sliding_window": None}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Shape of a decoder; field names follow `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 40_960
    model_type: str = "qwen3"
    rope_scaling: RopeScaling | None = None
    is_scalar: bool = False  # one value per token in place of logits: a reward model
    # Carried for others: transformers scores no batch without a pad token, and gives a Llama whose config.json does not
    # name its first and last token those of Llama 2.
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise ValueError(f"model_type: {self.model_type!r} is not supported; {_are(FAMILIES)}")
        check_positive(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embedding")

    @classmethod
    def from_pretrained(cls, path: str | Path, is_scalar: bool = False) -> DecoderConfig:
        """Reads `config.json` of a Hugging Face directory: a language model's, or a reward model's if `is_scalar`."""
        file = Path(path) / "config.json"
        try:
            return cls.from_hf(_read_json(file), is_scalar)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def from_hf(cls, raw: dict[str, Any], is_scalar: bool = False) -> DecoderConfig:
        """Reads what a `config.json` holds."""
        return _read_config(raw, is_scalar)

    def to_hf(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """`config.json` that `transformers` versions 4 and 5 both read as this model."""
        raw = {
            "architectures": [_architecture(self.family, self.is_scalar)],
            "model_type": self.model_type,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "use_cache": True,
            **self.family.fixed,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "torch_dtype": str(dtype).removeprefix("torch."),
        }
        if self.rope_scaling is not None:
            settings = {k: v for k, v in dataclasses.asdict(self.rope_scaling).items() if v is not None}
            raw["rope_scaling"] = {"rope_type": self.rope_scaling.rope_type, **settings}
            raw["rope_parameters"] |= raw["rope_scaling"]
        if self.is_scalar:
            raw |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return raw

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def num_parameters(self) -> int:
        D, C, H, K = self.hidden_size, self.head_dim, self.num_attention_heads, self.num_key_value_heads
        attention = D * C * (2 * H + 2 * K)
        if self.family.has_qkv_bias:
            attention += C * (H + 2 * K)
        if self.family.has_qk_norm:
            attention += 2 * C
        layer = attention + 3 * D * self.intermediate_size + 2 * D
        head = D if self.is_scalar else 0 if self.tie_word_embeddings else self.vocab_size * D
        return self.vocab_size * D + self.num_hidden_layers * layer + D + head


def is_reward_model(path: str | Path) -> bool:
    """Whether a Hugging Face directory says that it holds a scalar head.

    Raises:
        ValueError: no readable config.json.
    """
    file = Path(path) / "config.json"
    try:
        names = _read_json(file).get("architectures") or []
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError("no such file; a model is a Hugging Face directory with config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    return raw


def _read_config(raw: dict[str, Any], is_scalar: bool) -> DecoderConfig:
    model_type = raw.get("model_type")
    if model_type not in [*FAMILIES]:
        raise ValueError(f"model_type: {model_type!r} is not supported; {_are(FAMILIES)}")
    family = FAMILIES[model_type]
    if model_type == "mistral":
        raw = {**raw, "sliding_window": _effective_window(raw)}
    values = {name: value for name, value in raw.items() if value is not None}  # null means absent
    for name, wanted in {"hidden_act": "silu", "partial_rotary_factor": 1.0, **family.fixed}.items():
        if values.get(name, wanted) != wanted:
            raise ValueError(f"{name}: {values[name]!r} is not supported; {wanted!r} is")
    layer_types = values.get("layer_types", [])
    for layer_type in layer_types if isinstance(layer_types, list) else [layer_types]:
        if layer_type != "full_attention":
            raise ValueError(f"layer_types: {layer_type!r} is not supported; 'full_attention' is")
    if "quantization_config" in values:
        raise ValueError("quantization_config: quantized weights are not supported; float32, bfloat16 and float16 are")
    _check_kind(values, family, is_scalar)

    values["rope_theta"], values["rope_scaling"] = _read_rope(values)
    values["is_scalar"] = is_scalar
    values.setdefault("tie_word_embeddings", False)
    if "eos_token_id" in values:
        ends = values["eos_token_id"]
        if any(type(end) is not int for end in (ends if isinstance(ends, list) else [ends])):
            raise ValueError(f"eos_token_id: {ends!r} is not of type int, nor a list of such")
        values["eos_token_id"] = tuple(ends) if isinstance(ends, list) else ends
    if model_type != "qwen3":  # whose heads always say how wide they are
        num_heads, width = values.get("num_attention_heads"), values.get("hidden_size")
        values.setdefault("num_key_value_heads", num_heads)
        if type(num_heads) is type(width) is int and num_heads > 0:
            values.setdefault("head_dim", width // num_heads)
    return _read_fields(DecoderConfig, values, required=("rope_theta", "rms_norm_eps", "max_position_embeddings"))


def _effective_window(raw: dict[str, Any]) -> None:
    """Refuses a window that hides a key from a query of the longest text."""
    window, longest = raw.get("sliding_window", 4096), raw.get("max_position_embeddings")  # 4096: transformers' default
    if window is not None and not (type(window) is type(longest) is int and window >= longest):
        raise ValueError(
            f"sliding_window: {window!r} is not supported; null is, or at least max_position_embeddings={longest!r}, "
            "under which it hides nothing"
        )


def _check_kind(values: dict[str, Any], family: Family, is_scalar: bool) -> None:
    wanted = [_architecture(family, is_scalar)]
    if values.get("architectures", wanted) != wanted:
        kind = "reward" if is_scalar else "language"
        raise ValueError(f"architectures: {values['architectures']!r} is not the {kind} model expected; {wanted!r} is")
    if is_scalar:
        name, count = "num_labels", values.get("num_labels", 2)  # transformers writes nothing when there are 2
        if isinstance(values.get("id2label"), dict):
            name, count = "id2label", len(values["id2label"])
        if count != 1:
            raise ValueError(f"{name}: {count!r} labels are not supported; a reward model has 1")


def _read_rope(values: dict[str, Any]) -> tuple[float | None, RopeScaling | None]:
    """(rope_theta, scaling): transformers 5 nests both in rope_parameters, 4 wrote rope_theta beside rope_scaling."""
    where = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"  # transformers, too, prefers the former
    settings = values.get(where) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{where}: {settings!r} is not a JSON object")
    # Llama 2's config.json does not name its theta.
    default_theta = 10_000.0 if values["model_type"] == "llama" else None
    theta = settings.get("rope_theta") or values.get("rope_theta", default_theta)
    rope_type = settings.get("rope_type") or settings.get("type", "default")
    share = settings.get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise ValueError(f"{where}.partial_rotary_factor: {share!r} is not supported; 1.0 is")
    if rope_type == "default":
        return theta, None
    if rope_type not in [*SCALINGS]:
        raise ValueError(f"rope_type: {rope_type!r} is not supported; {_are(['default', *SCALINGS])}")
    length = values.get("original_max_position_embeddings", values.get("max_position_embeddings"))
    try:
        return theta, _read_fields(SCALINGS[rope_type], {"original_max_position_embeddings": length, **settings})
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def _read_fields(cls: type[_T], values: Mapping[str, Any], required: Collection[str] = ()) -> _T:
    """A dataclass from JSON values of its fields; those with a default may be absent or null unless `required`."""
    found = {}
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        if value is None:
            if field.default is dataclasses.MISSING or field.name in required:
                raise ValueError(f"{field.name}: missing")
            continue
        # With postponed annotations a field's type is its name. Whole floats are written as integers by some.
        wanted = field.type.removesuffix(" | None")
        is_right = type(value).__name__ == wanted or (wanted == "float" and type(value) is int)
        if wanted in ("int", "float", "bool") and not is_right:
            raise ValueError(f"{field.name}: {value!r} is not of type {wanted}")
        found[field.name] = value
    return cls(**found)


def _architecture(family: Family, is_scalar: bool) -> str:
    return family.name + ("ForSequenceClassification" if is_scalar else "ForCausalLM")


def _are(names: Iterable[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} and {last} are"
