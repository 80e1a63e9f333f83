"""AdamW with float32 copies of weights in bfloat16: its values, and its resumption."""

import copy

import pytest
import torch
from torch.optim import AdamW

from amid.training.master_weights import AdamWWithMasterWeights

GIVEN = {"lr": 3e-2, "weight_decay": 0.1}


def model(dtype):
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 64), torch.nn.LayerNorm(64)
    return torch.nn.Sequential(*layers).to(dtype)


def take_step(model, optimizer, seed):
    rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed)).to(model[0].weight.dtype)
    (model(rows) - rows).square().mean().backward()
    gradients = [weight.grad.clone() for weight in model.parameters()]
    optimizer.step()
    optimizer.zero_grad()
    return gradients


@pytest.mark.parametrize("how", [{}, {"fused": True}, {"foreach": True}])
def test_float32_weights_take_the_steps_of_adamw(how):
    ours, theirs = model(torch.float32), model(torch.float32)
    optimizers = (
        AdamWWithMasterWeights(ours.parameters(), **GIVEN, **how),
        AdamW(theirs.parameters(), **GIVEN, **how),
    )
    for seed in range(5):
        take_step(ours, optimizers[0], seed)
        take_step(theirs, optimizers[1], seed)
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert all("master" not in state for state in optimizers[0].state.values())


@pytest.mark.parametrize("how", [{}, {"fused": True}])
def test_bfloat16_weights_are_rounded_float32_weights_with_the_same_gradients(how):
    ours = model(torch.bfloat16)
    masters = [torch.nn.Parameter(weight.detach().float()) for weight in ours.parameters()]
    optimizer, expected = (
        AdamWWithMasterWeights(ours.parameters(), **GIVEN, **how),
        AdamW(masters, **GIVEN, **how),
    )
    for seed in range(5):
        gradients = take_step(ours, optimizer, seed)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient.float()
        expected.step()
    for weight, master in zip(ours.parameters(), masters, strict=True):
        assert torch.equal(optimizer.state[weight]["master"], master)
        assert torch.equal(weight, master.bfloat16())


@pytest.mark.parametrize(("make", "moved"), [(AdamWWithMasterWeights, 1e-1), (AdamW, 0.0)])
def test_small_steps_add_up(make, moved):
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = make([weight], lr=1e-3, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert 1 - weight[0].item() == pytest.approx(moved, abs=4e-3)  # bfloat16 has steps of 2^-8 below 1


def test_a_resumed_training_is_a_whole_one(tmp_path):
    whole = model(torch.bfloat16)
    begun, again = copy.deepcopy(whole), copy.deepcopy(whole)
    optimizer = AdamWWithMasterWeights(whole.parameters(), **GIVEN)
    for seed in range(6):
        take_step(whole, optimizer, seed)
    first = AdamWWithMasterWeights(begun.parameters(), **GIVEN)
    for seed in range(3):
        take_step(begun, first, seed)
    torch.save({"model": begun.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state")
    stored = torch.load(tmp_path / "state", weights_only=True, mmap=True)
    again.load_state_dict(stored["model"])
    second = AdamWWithMasterWeights(again.parameters(), lr=1.0)
    second.load_state_dict(stored["optimizer"])
    for seed in range(3, 6):
        take_step(again, second, seed)
    for weight, expected in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(weight, expected)
        for name, value in optimizer.state[expected].items():
            assert torch.equal(second.state[weight][name], value)
            assert value.dtype == torch.float32
