"""Spread tensors in files, written by some ranks and read by others."""

import pytest
import torch
from in_ranks import in_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from amid.distributed import ranks
from amid.distributed.shards import with_tensors, without_spread, write

TENSORS = {
    "even": torch.arange(12.0).view(6, 2),
    "fewer rows than ranks": torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16),
    "no rows": torch.empty(0, 3),
}


def mesh():
    return init_device_mesh("cpu", (ranks.number(),))


def written(folder):
    spread = {name: distribute_tensor(value, mesh(), [Shard(0)]) for name, value in TENSORS.items()}
    content, found = without_spread({"at": [spread, 7], "text": "a", "tied": spread["even"].detach()})
    assert len(found) == 3
    return content, sorted(write(found, folder))


def read(folder, content):
    loaded = with_tensors(content, folder, mesh())["at"][0]
    assert all(isinstance(value, DTensor) for value in loaded.values())
    return {name: value.full_tensor().tolist() for name, value in loaded.items()}


def test_any_number_of_processes_reads_what_three_have_written(tmp_path):
    (content, files), *_ = in_ranks(3, written, tmp_path)
    assert files == sorted(file.name for file in tmp_path.iterdir())
    loaded = with_tensors(content, tmp_path)
    assert (loaded["at"][1], loaded["text"]) == (7, "a")
    assert loaded["tied"].tolist() == TENSORS["even"].tolist()
    for name, value in TENSORS.items():
        torch.testing.assert_close(loaded["at"][0][name], value, rtol=0, atol=0)
    for of_rank in in_ranks(2, read, tmp_path, content):
        assert of_rank == {name: value.tolist() for name, value in TENSORS.items()}


def test_a_rank_that_cannot_write_is_an_error_on_all(tmp_path):
    (tmp_path / "file").touch()
    for error in in_ranks(2, written, tmp_path / "file"):
        assert isinstance(error, OSError)
        with pytest.raises(OSError, match="cannot be written"):
            raise error
