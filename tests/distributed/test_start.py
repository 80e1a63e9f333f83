"""Who starts the ranks of a run."""

import os
from datetime import timedelta

import pytest
from in_ranks import in_ranks
from omegaconf import OmegaConf

from amid.cli.launch import _check_same
from amid.distributed import ranks
from amid.distributed.start import is_other_rank_of_torchrun, ranks_to_start, started_elsewhere
from amid.errors import InputError
from amid.settings.nodes import Trainer

OF_SLURM = {
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "node[07-08]",
    "SLURM_JOB_ID": "1234567",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The environment of this test alone, which what is tested adds to."""
    outside = ("RANK", "WORLD_SIZE", "MASTER", "SLURM", "TORCHELASTIC", "LOCAL_", "GROUP_")
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(outside)})
    return os.environ


def trainer(devices=1, num_nodes=1):
    return Trainer.model_construct(accelerator="cpu", devices=devices, num_nodes=num_nodes)


@pytest.mark.parametrize(("devices", "n"), [(1, 1), (3, 3), ([2], 1), ([0, 5], 2)])
def test_amid_starts_a_process_for_each_device(devices, n):
    assert ranks_to_start(trainer(devices)) == n
    assert not started_elsewhere(trainer(devices))


def test_torchrun_has_started_them(environment):
    environment |= {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "1"}
    for given in (trainer(), trainer(4), trainer(2, 2)):
        assert ranks_to_start(given) == 1
        assert started_elsewhere(given)
    assert is_other_rank_of_torchrun()
    with pytest.raises(InputError, match=r"trainer.devices=3 .* asks for 3 processes, and 4 were started"):
        ranks_to_start(trainer(3))


def test_srun_has_started_them_if_the_settings_ask_for_several(environment):
    environment |= OF_SLURM
    assert not started_elsewhere(trainer())  # each has runs of its own
    assert ranks_to_start(trainer(2, 2)) == 1
    place = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    place |= {"GROUP_RANK": "1", "MASTER_ADDR": "node07", "MASTER_PORT": "19567"}
    assert place.items() <= environment.items()


def test_several_machines_need_a_launcher():
    with pytest.raises(InputError, match=r"trainer.num_nodes=2: start amid on each machine, by torchrun"):
        ranks_to_start(trainer(2, 2))


def settings_of_rank(tmp_path):
    _check_same(OmegaConf.create({"optimizer": {"lr": 0.1 * (1 + ranks.rank())}}), tmp_path)


def test_ranks_of_other_settings_are_named(tmp_path):
    for error in in_ranks(2, settings_of_rank, tmp_path):
        assert isinstance(error, InputError)
        assert str(error).startswith("optimizer.lr is 0.1 on rank 0 and 0.2 on rank 1; start all ranks")


def test_a_rank_that_is_alone_gives_up_with_the_address(monkeypatch, environment):
    monkeypatch.setattr("amid.distributed.ranks.MEET_WITHIN", timedelta(seconds=1))
    environment |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}
    said = r"rank 0 of 2 did not meet .*=127.0.0.1:29617 within 0:00:01"
    with pytest.raises(InputError, match=said), ranks.together(gpus=False):
        pass


def test_the_others_do_not_wait_for_a_first_rank_that_has_failed(monkeypatch, environment):
    environment |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29618"}
    stores = []
    with pytest.raises(ZeroDivisionError), ranks.together(gpus=False):
        stores.append(ranks._store()) or 1 / 0
    monkeypatch.setattr(ranks, "_store", lambda: stores[0])
    monkeypatch.setattr(ranks._Place, "number", 2)
    monkeypatch.setattr(ranks._Place, "rank", 1)
    with pytest.raises(ranks.LostContact):
        ranks.from_first(lambda: None)


def test_a_key_that_the_first_rank_set_before_it_failed_is_found(monkeypatch):
    known = set()

    class Store:
        def check(self, keys):
            found = set(keys) <= known
            known.update({"awaited", ranks._key_of_failure()})  # between two looks of another rank
            return found

    store = Store()
    monkeypatch.setattr(ranks, "_store", lambda: store)
    ranks._wait_for("awaited")
