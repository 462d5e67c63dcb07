"""Weights between Hugging Face directories and a `Decoder`: safetensors, one file or sharded, tensor by tensor.

A sharded (FSDP2) decoder reads only its own slices, so no rank holds a second full copy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rollout.decoder import Decoder, DecoderConfig
from rollout.text_files import naming, write_text

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F64", "F32", "F16", "BF16")
# A tied head that is written all the same, or a language head beside a scalar one; tables that older files hold.
_IS_SUPERFLUOUS = re.compile(r"lm_head\.weight|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_IS_OURS = re.compile(r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def load_decoder(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    is_scalar: bool = False,
) -> Decoder:
    """Builds the decoder of a Hugging Face directory on the meta device and streams its weights to `device`.

    A language model is expected, or with `is_scalar` a reward model.
    """
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig.from_pretrained(path, is_scalar)).to(dtype)
    decoder.to_empty(device=device)
    load_weights_(decoder, path)
    return decoder


@torch.no_grad()
def load_weights_(decoder: Decoder, path: str | Path, but: Collection[str] = ()) -> None:
    """Copies the weights of a Hugging Face directory into `decoder`, sharded or not, cast to its dtype.

    Beside the decoder no more is held than one tensor or, of a sharded decoder, this rank's part of it. Parameters
    named in `but` are left as they are.

    Raises:
        ValueError: one line naming the file and the tensor when one is missing, unknown, quantized or of another shape.
    """
    wanted = {_hf_name(name): parameter for name, parameter in decoder.named_parameters() if name not in but}
    seen: set[str] = set()
    for file, name in named_tensors(Path(path)):
        if name not in wanted:
            if _IS_SUPERFLUOUS.fullmatch(name):
                continue
            raise ValueError(f"{file}: {name}: the model in config.json has no such tensor")
        with safe_open(file, framework="pt") as shard:
            tensor = shard.get_slice(name)
            parameter = wanted[name]
            if (dtype := tensor.get_dtype()) not in _DTYPES:
                raise ValueError(f"{file}: {name}: type {dtype} is not supported; {', '.join(_DTYPES)} are")
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
    """Yields (our name, full detached tensor) one by one; on a sharded decoder a collective that all ranks run."""
    for name, parameter in decoder.named_parameters():
        yield name, whole(parameter.detach())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, sharded or not; of a sharded one it is a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def save_decoder(
    decoder: Decoder,
    path: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 4 << 30,
    is_writer: bool = True,
) -> None:
    """Writes a Hugging Face directory that `AutoModelForCausalLM` reads, aside, and moves it into place when whole.

    That of a scalar decoder is read by `AutoModelForSequenceClassification`. What else is in the directory already (a
    tokenizer) is kept. Every rank of a sharded decoder calls this, one of them with `is_writer`.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".partial")
    if is_writer:
        settle_replacement(path)
        shutil.rmtree(aside, ignore_errors=True)
        if path.is_dir():
            with naming(path):
                _copy_all_but_weights(path, aside)
        aside.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    num_bytes = 0
    for shard in _shards(decoder, dtype, max_shard_bytes, is_writer):
        shards.append(list(shard))
        if is_writer:
            with naming(path, SafetensorError):
                save_file(shard, aside / f"shard-{len(shards)}", metadata={"format": "pt"})
            num_bytes += sum(tensor.nbytes for tensor in shard.values())
            dtype = next(iter(shard.values())).dtype
    if not is_writer:
        return
    if len(shards) == 1:
        os.replace(aside / "shard-1", aside / _SINGLE)
    else:
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            os.replace(aside / f"shard-{number}", aside / file)
            weight_map |= dict.fromkeys(names, file)
        told = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        write_text(aside / _INDEX, json.dumps(told, indent=1))
    write_text(aside / "config.json", json.dumps(decoder.config.to_hf(dtype), indent=1))
    for file in aside.glob("*.safetensors"):
        shutil.copymode(aside / "config.json", file)  # safetensors lets nobody else read them
    replace_directory(aside, path)


def replace_directory(aside: Path, path: Path) -> None:
    """Moves a finished directory over `path`.

    A directory cannot be renamed over another in one step: between two renames the old one is at `path`.old, and stays
    there if the process dies; `settle_replacement` puts it back, and the next call does so first.
    """
    old = settle_replacement(path)
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def settle_replacement(path: Path) -> Path:
    """Ends what a process that died in `replace_directory` had begun; returns where it keeps the old directory."""
    old = path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        os.replace(old, path)
    shutil.rmtree(old, ignore_errors=True)
    return old


def _shards(
    decoder: Decoder, dtype: torch.dtype | None, max_bytes: int, is_kept: bool
) -> Iterator[dict[str, Tensor | None]]:
    """Tensors by their Hugging Face names, in groups of at most `max_bytes`; without `is_kept` only the names."""
    shard: dict[str, Tensor | None] = {}
    num_bytes = 0
    for name, tensor in full_tensors(decoder):
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        if shard and num_bytes + size > max_bytes:
            yield shard
            shard, num_bytes = {}, 0
        shard[_hf_name(name)] = tensor.to("cpu", dtype or tensor.dtype).contiguous() if is_kept else None
        num_bytes += size
    yield shard


def _copy_all_but_weights(path: Path, aside: Path) -> None:
    def weights(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if _IS_OURS.fullmatch(name)] if Path(folder) == path else []

    shutil.copytree(path, aside, ignore=weights)


def _hf_name(name: str) -> str:
    return name if name.startswith(("lm_head.", "score.")) else f"model.{name}"


def named_tensors(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, tensor name) of every tensor in a directory."""
    index = path / _INDEX
    files = [path / _SINGLE]
    if index.is_file():
        try:
            files = sorted(
                {path / file for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index}: not an index of shards: a JSON object with weight_map is expected") from None
    for file in files:  # all of them first: nobody waits for a load that cannot end
        if not file.is_file():
            raise ValueError(f"{file}: no such file; weights are read from {_SINGLE} or from {_INDEX} and its shards")
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                names = list(shard.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: not a complete safetensors file: {error}") from None
        yield from ((file, name) for name in names)
