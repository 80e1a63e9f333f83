"""Files of tensors that appear whole or not at all, and carry a checksum of what is in them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amid.console import announce
from amid.files import SUM, written_whole


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes a safetensors file, with a checksum of the tensors in it, that appears whole or not at all;
    returns the checksum of the file."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with written_whole(file) as part:
        save_file(tensors, part, {SUM: _sum(tensors)})
        with part.open("rb") as stream:
            return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def read_tensors(file: Path) -> dict[str, Tensor] | None:
    """Reads what `write_tensors` wrote; None if the file is missing, or damaged, which it prints."""
    try:
        with safe_open(file, framework="pt") as stored:
            written = (stored.metadata() or {}).get(SUM)
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError):
        written, tensors = None, {}
    if written is not None and written == _sum(tensors):
        return tensors
    announce(f"{file} is damaged: made again")
    return None


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
