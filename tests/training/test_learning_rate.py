"""Learning rates equal the libraries' learning rates, step by step."""

import sys
from functools import partial

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch.optim import lr_scheduler as of_torch
from transformers import optimization as of_transformers

from amid.config.folders import CONF
from amid.errors import InputError
from amid.training import learning_rate
from amid.training.learning_rate import check_rates, scheduled, warmup_steps

STEPS, LR = 40, 3e-3


def adamw():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def rates(schedule, steps=STEPS):
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return seen


def of(target, **given):
    """The rates of a configuration's schedule."""
    node = {"_target_": target, **given, "_partial_": True}
    return rates(scheduled(instantiate(node), adamw(), STEPS))


def option(name, **given):
    """The rates of `scheduler=NAME`."""
    node = yaml.safe_load((CONF / "scheduler" / f"{name}.yaml").read_text()) | given
    return of(node.pop("_target_"), **node)


def test_the_default_is_the_published_cosine_to_the_digit():
    published = of_torch.CosineAnnealingLR(adamw(), STEPS, eta_min=1e-7)
    assert option("cosine", eta_min=1e-7) == rates(published)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (5, 5), (0.1, 4), (0.11, 5), (0.0, 0)])
def test_our_options_are_those_of_transformers(warmup, steps):
    assert option("linear", warmup=warmup) == rates(
        of_transformers.get_linear_schedule_with_warmup(adamw(), steps, STEPS)
    )
    assert option("constant", warmup=warmup) == rates(
        of_transformers.get_constant_schedule_with_warmup(adamw(), steps)
    )
    expected = of_transformers.get_cosine_with_min_lr_schedule_with_warmup(adamw(), steps, STEPS, min_lr=1e-4)
    assert option("cosine", warmup=warmup, eta_min=1e-4) == pytest.approx(rates(expected), rel=1e-9)


WITH_WARMUP = {
    "linear": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"lr_end": 1e-4, "power": 2.0},
    "inverse_sqrt": {"timescale": 7},
    "warmup_stable_decay": {"min_lr_ratio": 0.2, "decay_type": "1-sqrt", "warmup_type": "cosine"},
    "cosine_with_min_lr": {"min_lr_rate": 0.3},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.3, "warmup_lr_rate": 0.25},
}
NEED_A_SCORE = {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize(("warmup", "steps"), [(5, 5), (0.11, 5)])
@pytest.mark.parametrize("name", WITH_WARMUP)
def test_an_option_has_the_rates_of_transformers_name(name, warmup, steps):
    given = WITH_WARMUP[name]
    theirs = dict(given)
    if name == "warmup_stable_decay":
        given, theirs = given | {"decay": 0.3}, theirs | {"num_decay_steps": 12}
    of_their_name = "constant_with_warmup" if name == "constant" else name
    expected = of_transformers.get_scheduler(of_their_name, adamw(), steps, STEPS, theirs)
    found = option(name, warmup=warmup, **given)
    assert found == rates(expected)
    assert len(set(found)) > 4, "it warms up"


def test_every_schedule_of_transformers_over_steps_is_an_option():
    ours = {file.stem for file in (CONF / "scheduler").glob("*.yaml")}
    assert ours - {"minillm"} == {name.value for name in of_transformers.SchedulerType} - NEED_A_SCORE
    for name in ours - {"minillm"}:
        assert len(option(name)) == STEPS  # with the values of its file


def test_the_published_schedule_of_minillm():
    """`--warmup-iters 100`, with the constant schedule that its trainer takes by default."""
    node = yaml.safe_load((CONF / "scheduler" / "minillm.yaml").read_text())
    found = rates(scheduled(instantiate(node), adamw(), 200), 200)
    expected = of_transformers.get_scheduler("constant_with_warmup", adamw(), num_warmup_steps=100)
    assert found == rates(expected, 200)
    assert found[50] == LR / 2
    assert found[100:] == [LR] * 100


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        ("polynomial", {"lr_end": 0.1}, r"a.scheduler.lr_end=0.1 must be below the learning rate, optimiz"),
        ("warmup_stable_decay", {"warmup": 30, "decay": 11}, "decay=11: 30 steps of warm-up and 11 of decay"),
        ("warmup_stable_decay", {"decay": 1.0}, "a.scheduler.decay=1.0 must be a whole number of steps"),
        ("cosine_with_min_lr", {}, "min_lr=null and scheduler.min_lr_rate=null: set exactly one of them"),
        (
            "cosine_warmup_with_min_lr",
            {"min_lr": 0.0, "min_lr_rate": 0.1},
            "min_lr=0.0 and scheduler.min_lr_",
        ),
        (
            "cosine",
            {"eta_min": 0.2},
            "scheduler.eta_min=0.2 must be at most the learning rate, optimizer.lr=0.1;",
        ),
        (
            "cosine_with_min_lr",
            {"min_lr": 0.2},
            "scheduler.min_lr=0.2 must be at most the learning rate, opt",
        ),
        (
            "cosine_warmup_with_min_lr",
            {"min_lr": 0.2},
            "scheduler.min_lr=0.2 must be at most the learning ra",
        ),
        ("cosine_with_restarts", {"warmup": 40}, "warmup=40: 40 steps of warm-up leave none of the 40 steps"),
    ],
)
def test_values_that_do_not_fit_are_named(target, given, message):
    node = {"_target_": f"amid.training.learning_rate.{target}", "_partial_": True, **given}
    optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    with pytest.raises(InputError, match=message):
        check_rates({"optimizer": optimizer, "scheduler": node}, STEPS, "a.")


def test_a_package_that_an_optimiser_lacks_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    optimizer = {"_target_": "amid.training.low_bit.adamw_8bit", "_partial_": True, "lr": 0.1}
    with pytest.raises(InputError, match=r"^a\.optimizer=adamw_8bit needs torchao .*\[quantized\]"):
        check_rates({"optimizer": optimizer, "scheduler": {}}, STEPS, "a.")


def test_a_least_rate_needs_a_learning_rate():
    cfg = {"_target_": "amid.training.learning_rate.cosine_with_min_lr", "_partial_": True, "min_lr": 1e-4}
    optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.0}
    with pytest.raises(InputError, match=r"optimizer.lr=0.0 \(.*zero\); use a learning rate above 0"):
        check_rates({"optimizer": optimizer, "scheduler": cfg}, STEPS)


T, H = "torch.optim.lr_scheduler.", "transformers.optimization."


@pytest.mark.parametrize(
    ("target", "given", "expected"),
    [
        (f"{T}OneCycleLR", {"max_lr": 0.01}, lambda o: of_torch.OneCycleLR(o, 0.01, total_steps=STEPS)),
        (
            f"{T}OneCycleLR",
            {"max_lr": 0.01, "total_steps": 80},
            lambda o: of_torch.OneCycleLR(o, 0.01, total_steps=80),
        ),
        (f"{T}CosineAnnealingLR", {}, lambda o: of_torch.CosineAnnealingLR(o, STEPS)),
        (f"{T}CosineAnnealingLR", {"T_max": 10}, lambda o: of_torch.CosineAnnealingLR(o, 10)),
        (f"{T}PolynomialLR", {"power": 2.0}, lambda o: of_torch.PolynomialLR(o, STEPS, 2.0)),
        (
            f"{T}LinearLR",
            {"start_factor": 1.0, "end_factor": 0.1},
            lambda o: of_torch.LinearLR(o, 1.0, 0.1, total_iters=STEPS),
        ),
        (f"{T}StepLR", {"step_size": 7}, lambda o: of_torch.StepLR(o, 7)),
        (f"{T}ExponentialLR", {"gamma": 0.9}, lambda o: of_torch.ExponentialLR(o, 0.9)),
        (
            f"{T}CosineAnnealingWarmRestarts",
            {"T_0": 10},
            lambda o: of_torch.CosineAnnealingWarmRestarts(o, 10),
        ),
        (
            f"{H}get_linear_schedule_with_warmup",
            {"num_warmup_steps": 8},
            lambda o: of_transformers.get_linear_schedule_with_warmup(o, 8, STEPS),
        ),
        (
            f"{H}get_cosine_with_hard_restarts_schedule_with_warmup",
            {"num_warmup_steps": 8, "num_cycles": 2},
            lambda o: of_transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, 8, STEPS, 2),
        ),
        (
            f"{H}get_polynomial_decay_schedule_with_warmup",
            {"num_warmup_steps": 8},
            lambda o: of_transformers.get_polynomial_decay_schedule_with_warmup(o, 8, STEPS),
        ),
        (
            f"{H}get_inverse_sqrt_schedule",
            {"num_warmup_steps": 8},
            lambda o: of_transformers.get_inverse_sqrt_schedule(o, 8),
        ),
        (
            f"{H}get_wsd_schedule",
            {"num_warmup_steps": 4, "num_decay_steps": 10},
            lambda o: of_transformers.get_wsd_schedule(o, 4, 10, num_training_steps=STEPS),
        ),
    ],
)
def test_a_schedule_of_a_library_gets_the_rates_that_it_has_there(target, given, expected):
    assert of(target, **given) == rates(expected(adamw()))


def test_one_s_own_function_is_called_by_keyword():
    def mine(steps, factor, optimizer):
        return of_torch.LambdaLR(optimizer, lambda step: factor * (1 - step / steps))

    seen = rates(scheduled(partial(mine, factor=0.5), adamw(), STEPS))
    assert seen == pytest.approx([0.5 * LR * (1 - step / STEPS) for step in range(STEPS)])


@pytest.mark.parametrize("warmup", [-1, True, 1.0, 100.0, -0.1, float("nan"), None])
def test_a_warm_up_is_steps_or_a_share(warmup):
    with pytest.raises(InputError, match="must be a whole number of steps, or a share of them below 1"):
        warmup_steps(warmup, STEPS)


def test_a_warm_up_ends_before_the_training():
    with pytest.raises(InputError, match=r"scheduler.warmup=40: 40 steps of warm-up leave none of the 40"):
        learning_rate.linear(adamw(), STEPS, warmup=40)
    assert scheduled(partial(learning_rate.linear, warmup=40), adamw(), 0), "nothing is trained"


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_target_": f"{T}OneCycleLR"}, "a.scheduler=OneCycleLR was called with optimizer, total_steps"),
        ({"_target_": f"{T}ReduceLROnPlateau"}, "ReduceLROnPlateau needs a score at each step"),
        ({"_target_": f"{H}get_reduce_on_plateau_schedule"}, "get_reduce_on_plateau_schedule needs a score"),
        ({"_target_": "builtins.dict"}, "scheduler=dict returned dict; it must return a schedule of"),
        (
            {"_target_": "amid.training.learning_rate.linear", "warmup": 2.5},
            "a.scheduler.warmup=2.5 must be a whole number of steps",
        ),
    ],
)
def test_what_is_no_schedule_is_named(scheduler, message):
    optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    with pytest.raises(InputError, match=message):
        check_rates({"optimizer": optimizer, "scheduler": scheduler | {"_partial_": True}}, STEPS, "a.")
