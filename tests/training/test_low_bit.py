"""AdamW with its moments in 8 bits: its loss, its memory, and its resumption."""

import copy
from types import SimpleNamespace

import pytest
import torch

from amid.errors import InputError
from amid.experiment.check_plan import check_strategy
from amid.training.low_bit import adamw_8bit

pytest.importorskip("torchao")


def losses(model, optimizer, steps):
    found = []
    for step in steps:
        rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        loss = (model(rows) - rows).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss))
    return found


def test_it_trains_with_a_quarter_of_the_memory_and_goes_on_as_if_never_interrupted(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, bias=False)
    begun = copy.deepcopy(model)
    whole = adamw_8bit(model.parameters(), lr=1e-2)
    expected = losses(model, whole, range(30))
    assert expected[-1] < 0.5 * expected[0]
    (state,) = whole.state.values()
    inner = [value for moment in (state["exp_avg"], state["exp_avg_sq"]) for value in _tensors(moment)]
    assert sum(value.nbytes for value in inner) < 0.35 * 2 * model.weight.nbytes

    first = adamw_8bit(begun.parameters(), lr=1e-2)
    assert losses(begun, first, range(10)) == expected[:10]
    torch.save({"model": begun.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state")
    stored = torch.load(tmp_path / "state", weights_only=True, mmap=True)
    again = torch.nn.Linear(64, 64, bias=False)
    again.load_state_dict(stored["model"])
    second = adamw_8bit(again.parameters(), lr=1.0)
    second.load_state_dict(stored["optimizer"])
    assert losses(again, second, range(10, 30)) == expected[10:]


def _tensors(moment):
    names, _ = moment.__tensor_flatten__()
    return [getattr(moment, name) for name in names]


def test_its_moments_cannot_be_spread():
    strategy, data = SimpleNamespace(strategy="fsdp"), SimpleNamespace(sharing="rows")
    optimizer = SimpleNamespace(func=adamw_8bit)
    plan = SimpleNamespace(trainer=strategy, data_settings=data, optimizer=optimizer, at="")
    with pytest.raises(InputError, match=r"optimizer=adamw_8bit with trainer\.strategy=fsdp"):
        check_strategy(plan)
    data.sharing, optimizer.func = "micro_batches", torch.optim.AdamW
    with pytest.raises(InputError, match=r"data\.sharing=micro_batches with trainer\.strategy=fsdp"):
        check_strategy(plan)
