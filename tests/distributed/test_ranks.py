"""What ranks say to each other, and that what they compute together is what one process computes."""

from functools import partial

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_ranks import in_ranks
from small_models import data_of, fitted, network

from amid.distributed import ranks
from amid.distributed.shares import shares
from amid.errors import InputError
from amid.losses import KL, AlphaBeta, AlphaMixture, JensenShannon, Objective
from amid.text import AdaptiveText, DataText, StudentText


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 9))
def test_every_item_has_one_rank_and_no_rank_has_a_whole_item_too_many(sizes, n):
    of_ranks = shares(sizes, n)
    assert sorted(item for items in of_ranks for item in items) == list(range(len(sizes)))
    assert all(items == sorted(items) for items in of_ranks)
    loads = [sum(sizes[item] for item in items) for items in of_ranks]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def talk():
    me = ranks.rank()
    said = {"first": ranks.from_first(lambda: f"from {me}"), "all": ranks.gathered(me * 10)}
    said["any"] = ranks.any_of([me == 1, False, True])
    sums = {"a": torch.tensor(0.1)} | ({"b": torch.tensor(2.0)} if me else {})
    said["totals"] = {name: float(value) for name, value in ranks.totals(sums).items()}

    def refuse():
        raise InputError("lr=-1 must not be negative")

    with pytest.raises(InputError, match="lr=-1"):
        ranks.from_first(refuse)
    return said


def test_ranks_agree():
    for said in in_ranks(3, talk):
        assert said["first"] == "from 0"
        assert said["all"] == [0, 10, 20]
        assert said["any"] == [True, False, True]
        assert said["totals"] == {"a": pytest.approx(0.3), "b": 4.0}


def gradients():
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(4)]
    weights[3].requires_grad = False
    weights[0].grad = torch.full((3,), 1.0 + ranks.rank())
    if ranks.rank() == 1:
        weights[1].grad = torch.tensor([1.0, 2.0, 3.0])
    ranks.sum_gradients(weights)
    return [None if weight.grad is None else weight.grad.tolist() for weight in weights]


def test_gradients_are_summed_and_what_has_none_keeps_none():
    found = in_ranks(3, gradients)
    assert found == [[[6.0] * 3, [1.0, 2.0, 3.0], None, None]] * 3


OBJECTIVES = {
    "kl": lambda: Objective(KL(), AlphaMixture(-5.0, 0.1)),
    "alpha_beta": lambda: Objective(AlphaBeta(), AlphaMixture(0.0, 0.3), order="qr"),
    "jensen_shannon": lambda: Objective(JensenShannon(0.5), fused=False),
}


def after_steps(tmp_path, objective, text, mean="step", size=13):
    """The weights after five steps, the step's loss, and the weights of the first rank after each step."""
    data = data_of(tmp_path, size=size, batch_size=7, micro_batch_size=2, mean=mean, valid_metric=None)
    module, logged = fitted(data, text(), network(), objective=OBJECTIVES[objective](), steps=5)
    weights = torch.cat([weight.detach().reshape(-1) for weight in module.student.parameters()])
    first = ranks.from_first(weights.clone)
    return weights.numpy(), logged["train/loss"], bool((weights == first).all())


TEXTS = {
    "data": DataText,
    "student": partial(StudentText, max_new_tokens=8),
    "adaptive": partial(AdaptiveText, max_new_tokens=8, threshold=0.7, capacity=10),
}


@pytest.mark.parametrize(
    ("objective", "text", "mean"),
    [
        ("kl", "data", "step"),
        ("alpha_beta", "data", "micro_batch"),
        ("jensen_shannon", "student", "step"),
        ("kl", "adaptive", "step"),
    ],
)
def test_five_steps_of_one_two_and_four_ranks_are_equal(tmp_path, objective, text, mean):
    alone, loss, _ = after_steps(tmp_path, objective, TEXTS[text], mean)
    for n in (2, 4):
        for weights, of_rank, same in in_ranks(n, after_steps, tmp_path, objective, TEXTS[text], mean):
            assert same  # to the last bit
            assert numpy.linalg.norm(weights - alone) <= 1e-6 * numpy.linalg.norm(alone)
            assert of_rank == pytest.approx(loss, rel=1e-5)
