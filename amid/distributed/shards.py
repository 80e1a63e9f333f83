"""Nested content with spread tensors in files: each rank writes its parts of the tensors, and reads them.

The files are safetensors files of torch.distributed.checkpoint. They hold no pickle, and any number of
processes can read them.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, empty
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor import empty as empty_parts

from amid.distributed import ranks
from amid.files import checksum

_IN_FILES = "name of a tensor in the files beside"
"""The key of what stands in the place of a tensor."""

logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)  # it says that a process is alone


def without_spread(content: Any) -> tuple[Any, dict[str, DTensor]]:
    """Returns nested dicts and lists with names in place of spread tensors, and the tensors by name.

    Tensors that share their memory, such as tied weights, have one name.
    """
    found: dict[str, DTensor] = {}
    names: dict[tuple[Any, ...], str] = {}

    def emptied(part: Any, at: str) -> Any:
        if isinstance(part, DTensor):
            place = part.to_local()
            memory = place.untyped_storage().data_ptr()  # also of an empty part of a weight, which is padded
            name = names.setdefault((memory, place.storage_offset(), part.shape), at) if memory else at
            found.setdefault(name, part)
            return {_IN_FILES: name}
        if isinstance(part, dict):
            return {key: emptied(value, f"{at}/{key}") for key, value in part.items()}
        if isinstance(part, list | tuple):
            return type(part)(emptied(value, f"{at}/{number}") for number, value in enumerate(part))
        return part

    return emptied(content, ""), found


def with_tensors(content: Any, folder: Path, mesh: DeviceMesh | None = None) -> Any:
    """Returns content of `without_spread` with its tensors, which `write` has written to `folder`.

    Args:
        content: the whole content, or a part.
        folder: the folder of the files.
        mesh: the ranks that the tensors are spread over; None for whole tensors on the CPU.
    """
    tensors = _read(folder, _names(content), mesh)

    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            if _IN_FILES in part:
                return tensors[part[_IN_FILES]]
            return {key: filled(value) for key, value in part.items()}
        return type(part)(map(filled, part)) if isinstance(part, list | tuple) else part

    return filled(content)


def write(tensors: Mapping[str, DTensor], folder: Path) -> dict[str, str]:
    """Writes each rank's parts of spread tensors to a file in `folder`; returns the checksums of all files.

    Raises:
        OSError: on all ranks, if one of them cannot write its parts.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with ranks.exchanging():
            save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        (reason, _), *_ = error.failures.values()
        raise OSError(getattr(reason, "errno", None), f"cannot be written: {reason}", str(folder)) from error
    files = sorted(folder.iterdir())
    mine = {file.name: str(checksum(file)) for file in files[ranks.rank() :: ranks.number()]}
    return {name: value for of_rank in ranks.gathered(mine) for name, value in of_rank.items()}


def _read(folder: Path, names: Iterable[str], mesh: DeviceMesh | None) -> dict[str, Tensor]:
    reader = HuggingFaceStorageReader(str(folder))
    about: Any = reader.read_metadata().state_dict_metadata

    def room(name: str) -> Tensor:
        size, dtype = about[name].size, about[name].properties.dtype
        if mesh is None:
            return empty(size, dtype=dtype)
        return empty_parts(*size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])

    tensors = {name: room(name) for name in names}
    if tensors:
        with ranks.exchanging(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=mesh is None)
    return tensors


def _names(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        if _IN_FILES in content:
            yield content[_IN_FILES]
        else:
            for value in content.values():
                yield from _names(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _names(value)
