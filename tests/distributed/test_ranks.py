"""What ranks say to each other, and that what they compute together is what one process computes."""

import shutil
from functools import partial

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_ranks import in_ranks
from small_models import CPU, data_of, fitted, network

from amid.distributed import ranks
from amid.distributed.shares import shares
from amid.errors import InputError
from amid.losses import (
    KL,
    AdaptiveKL,
    AlphaBeta,
    AlphaDivergence,
    AlphaMixture,
    AlphaNet,
    BidirectionalKL,
    CrossEntropy,
    JensenShannon,
    Objective,
    ReverseKL,
    TotalVariation,
    WeightedSum,
)
from amid.models.lora import LoRA
from amid.models.source import ModelSource
from amid.teacher.supply import TeacherSupply
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
    "amid": Objective(KL(), AlphaMixture(-5.0, 0.1)),
    "abkd": Objective(AlphaBeta(0.2, 0.7), order="pq"),
    "reverse": Objective(ReverseKL(), AlphaMixture(1.0, 0.9), order="pr"),
    "of_student": Objective(AlphaDivergence(0.5), AlphaMixture(0.0, 0.3), order="qr"),
    "gkd": Objective(JensenShannon(0.5), fused=False),
    "tvd": Objective(TotalVariation()),
    "akl": AdaptiveKL(),
    "bdkd": BidirectionalKL(),
    "alphanet": AlphaNet(maximum="token"),
    "sft": CrossEntropy(),
    "sum": WeightedSum([(0.5, Objective(KL())), (0.5, CrossEntropy())]),
}


class Watched(torch.optim.SGD):
    """Gradient descent that keeps its first gradient, and says whether all ranks have equal weights."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        Watched.gradient, Watched.equal = None, []

    def step(self, closure=None):
        weights = [weight for group in self.param_groups for weight in group["params"]]
        if Watched.gradient is None:
            Watched.gradient = torch.cat([weight.grad.flatten() for weight in weights]).numpy()
        super().step(closure)
        after = torch.cat([weight.detach().flatten() for weight in weights]).numpy().tobytes()
        Watched.equal.append(len(set(ranks.gathered(after))) == 1)


def after_steps(tmp_path, objective, text=DataText, steps=5, student=network, teacher=None, **given):
    """The gradient of the first step, and the loss of the last; all ranks have equal weights after each."""
    data = data_of(tmp_path, **{"size": 13, "batch_size": 7, "micro_batch_size": 2, **given})
    how = {"objective": objective, "steps": steps, "optimizer": Watched}
    _, logged = fitted(data, text(), student(), teacher and teacher(data), **how)
    assert Watched.equal == [True] * steps
    return Watched.gradient, logged["train/loss"]


def check_equal(found, expected, of=""):
    for gradient, loss in found:
        assert numpy.linalg.norm(gradient - expected[0]) <= 1e-6 * numpy.linalg.norm(expected[0]), of
        assert loss == pytest.approx(expected[1], rel=1e-5)


def a_step_of_each(tmp_path):
    return {name: after_steps(tmp_path, of, steps=1) for name, of in OBJECTIVES.items()}


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_gradient_of_every_objective_is_that_of_one_rank(tmp_path, n):
    alone = a_step_of_each(tmp_path)
    for found in in_ranks(n, a_step_of_each, tmp_path):
        for name in OBJECTIVES:
            check_equal([found[name]], alone[name], name)


def adapted(dropout=0.0):
    student = network()
    LoRA(r=2, dropout=dropout, target_modules="all-linear").add_to(student)
    return student


def cached(data):
    supply = TeacherSupply("cached", cache_dir=str(data.cache_dir), multirun=True)
    source = ModelSource(str(data.cache_dir.parent / "teacher"))
    return supply.teacher(source, data.tokenizer, [data.train_tokens], passes=1.0, **CPU)


FIVE_STEPS = {
    "micro_batches": ("abkd", {"mean": "micro_batch"}),
    "student_text": ("gkd", {"text": partial(StudentText, max_new_tokens=8)}),
    "adaptive_text": ("amid", {"text": partial(AdaptiveText, max_new_tokens=8, threshold=0.7, capacity=10)}),
    "adapters": ("amid", {"student": adapted, "teacher": cached}),
}


@pytest.mark.parametrize(
    ("case", "n"),
    [
        *((case, 2) for case in FIVE_STEPS),
        ("adaptive_text", 4),
        *(pytest.param(case, 4, marks=pytest.mark.slow) for case in FIVE_STEPS if case != "adaptive_text"),
    ],
)
def test_five_steps_of_several_ranks_are_those_of_one(tmp_path, case, n):
    objective, given = FIVE_STEPS[case]
    network(seed=5).save_pretrained(tmp_path / "teacher")
    alone = after_steps(tmp_path, OBJECTIVES[objective], **given)
    shutil.rmtree(tmp_path / "cache")  # written by these ranks
    check_equal(in_ranks(n, partial(after_steps, **given), tmp_path, OBJECTIVES[objective]), alone)


WHOLE_MICRO_BATCHES = {
    "all weights": {},
    "dropout, packed": {"student": partial(adapted, dropout=0.5), "packing": True},
    "plain text": {"plain_text": "responses", "mean": "micro_batch"},
    "student's text": {
        "text": partial(StudentText, max_new_tokens=8),
        "tokens_per_batch": 128,
        "micro_batch_size": None,
    },
}


@pytest.mark.parametrize(
    ("case", "n"),
    [
        *((case, 3) for case in WHOLE_MICRO_BATCHES),
        *(pytest.param(case, 2, marks=pytest.mark.slow) for case in WHOLE_MICRO_BATCHES),
    ],
)
def test_whole_micro_batches_give_the_same_numbers_to_the_bit(tmp_path, case, n):
    given = {"steps": 3, "sharing": "micro_batches", "micro_batch_size": 2, **WHOLE_MICRO_BATCHES[case]}
    expected, expected_loss = after_steps(tmp_path, OBJECTIVES["amid"], **given)
    for gradient, loss in in_ranks(n, partial(after_steps, **given), tmp_path, OBJECTIVES["amid"]):
        assert gradient.tobytes() == expected.tobytes()
        assert loss == expected_loss
