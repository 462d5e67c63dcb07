"""Weights between Hugging Face directories and a `Decoder`: safetensors, one file or sharded, streamed tensor by tensor.

A sharded (FSDP2) decoder reads only its own slices, so no rank holds a second full copy.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rollout.decoder import Decoder, DecoderConfig

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_decoder(path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Decoder:
    """Builds the decoder of a Hugging Face directory on the meta device and streams its weights to `device`."""
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig.from_pretrained(path)).to(dtype)
    decoder.to_empty(device=device)
    load_weights_(decoder, path)
    return decoder


@torch.no_grad()
def load_weights_(decoder: Decoder, path: str | Path) -> None:
    """Copies the weights of a Hugging Face directory into `decoder`, sharded or not, cast to its dtype.

    Raises:
        ValueError: one line naming the file and the tensor when one is missing, unknown or of another shape.
    """
    wanted = {_hf_name(name): parameter for name, parameter in decoder.named_parameters()}
    optional = {"lm_head.weight"} if decoder.config.tie_word_embeddings else set()
    seen: set[str] = set()
    for file, name in _tensors(Path(path)):
        if name in optional:
            continue
        if name not in wanted:
            raise ValueError(f"{file}: {name}: the model in config.json has no such tensor")
        with safe_open(file, framework="pt") as shard:
            tensor = shard.get_slice(name)
            parameter = wanted[name]
            if tuple(tensor.get_shape()) != tuple(parameter.shape):
                raise ValueError(
                    f"{file}: {name}: shape {list(tensor.get_shape())}, the model has {list(parameter.shape)}"
                )
            if isinstance(parameter, DTensor):
                shape, offset = compute_local_shape_and_global_offset(
                    parameter.shape, parameter.device_mesh, parameter.placements
                )
                local = parameter.to_local()
                if local.numel():
                    local.copy_(tensor[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))])
            else:
                parameter.copy_(tensor[:])
        seen.add(name)
    missing = sorted(wanted.keys() - seen)
    if missing:
        raise ValueError(f"{path}: {missing[0]}: missing from the safetensors files ({len(missing)} missing in all)")


def full_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yields (our name, full detached tensor) one by one; on a sharded decoder a collective that every rank must run."""
    for name, parameter in decoder.named_parameters():
        tensor = parameter.detach()
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def save_decoder(
    decoder: Decoder,
    path: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 4 << 30,
    is_writer: bool = True,
) -> None:
    """Writes a Hugging Face directory that `AutoModelForCausalLM` reads; files appear whole or not at all.

    The directory is made aside and renamed into place. Files that are there already and are not weights (a tokenizer)
    are kept. Every rank of a sharded decoder calls this, one of them with `is_writer`.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".partial")
    if is_writer:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        if path.is_dir():
            for file in path.iterdir():
                if file.is_file() and not file.name.startswith("model") and file.name != "config.json":
                    shutil.copy2(file, aside / file.name)
    shards: list[dict[str, Tensor]] = [{}]
    num_bytes = 0
    names: list[list[str]] = []

    def flush() -> None:
        names.append(list(shards[-1]))
        if is_writer:
            save_file(shards[-1], aside / f"shard-{len(names):05d}", metadata={"format": "pt"})
        shards[-1] = {}

    total, dtype_written = 0, torch.float32
    for name, tensor in full_tensors(decoder):
        tensor = tensor.to("cpu", dtype or tensor.dtype).contiguous()
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and num_bytes + size > max_shard_bytes:
            flush()
            num_bytes = 0
        shards[-1][_hf_name(name)] = tensor
        num_bytes, total, dtype_written = num_bytes + size, total + size, tensor.dtype
    flush()
    if not is_writer:
        return
    if len(names) == 1:
        os.replace(aside / "shard-00001", aside / _SINGLE)
    else:
        weight_map = {}
        for number, shard in enumerate(names, 1):
            file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
            os.replace(aside / f"shard-{number:05d}", aside / file)
            weight_map |= dict.fromkeys(shard, file)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (aside / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    config = decoder.config.to_hf(dtype_written)
    (aside / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    replace_directory(aside, path)


def replace_directory(aside: Path, path: Path) -> None:
    """Moves a finished directory over `path`; an interruption leaves the old one or the new one, never a mixture."""
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"


def _tensors(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, tensor name) of every tensor in a directory."""
    if (path / _INDEX).is_file():
        weight_map: dict[str, str] = json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({path / file for file in weight_map.values()})
    else:
        files = [path / _SINGLE]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file; weights are read from {_SINGLE} or from {_INDEX} and its shards")
        try:
            with safe_open(file, framework="pt") as shard:
                names = list(shard.keys())
        except SafetensorError as error:
            raise ValueError(f"{file}: not a complete safetensors file: {error}") from None
        yield from ((file, name) for name in names)
