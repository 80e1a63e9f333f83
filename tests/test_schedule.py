import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amid.errors import InputError
from amid.losses import KL, AdaptiveKL, AlphaMixture, Objective
from amid.schedule import TAID


def taid_objective(lam=0.4):
    return Objective(KL(), AlphaMixture(1, lam, detach_student=True), "rq")


def by_the_rule(losses, steps, start, end, rate, momentum):
    """λ before each step and after the last, in tensors, as the paper's algorithm is written."""
    t, m, before = torch.tensor(start, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64), None
    course = [float(t)]
    for step, loss in enumerate(losses):
        if before is not None:
            m = momentum * m + (1 - momentum) * (before - loss) / (before + 1e-15)
            linear = start + (end - start) * step / steps
            t = torch.clamp(t + rate * torch.sigmoid(m) * (1 - t), min=linear).clamp(max=end)
        before = loss
        course.append(float(t))
    return course


def course_of(schedule, losses, steps):
    course = [schedule.values["lam"]]
    for step, loss in enumerate(losses):
        schedule.update(step, steps, {"loss": 0.3 * loss, "entropy_r": 0.7 * loss})
        course.append(schedule.values["lam"])
    return course


@given(
    losses=st.lists(st.floats(0.01, 20), min_size=1, max_size=30),
    start=st.floats(0, 0.9),
    rate=st.sampled_from([0, 5e-4, 0.1, 1.0]),
    momentum=st.sampled_from([0, 0.5, 0.99]),
)
def test_taid_moves_by_the_rule_and_never_back(losses, start, rate, momentum):
    steps = len(losses)
    course = course_of(TAID(start, 1.0, rate, momentum), losses, steps)
    assert course == pytest.approx(by_the_rule(losses, steps, start, 1.0, rate, momentum), abs=1e-12)
    assert course[0] == course[1] == start  # the first step gives the first loss only
    assert all(a <= b <= 1 for a, b in itertools.pairwise(course))
    for step in range(1, steps):
        assert course[step + 1] >= start + (1 - start) * step / steps - 1e-12


def test_taid_is_faster_the_faster_the_loss_falls():
    ends = []
    for factor in (0.5, 1.0, 2.0):
        losses = [factor**step for step in range(9)]
        course = course_of(TAID(0.2, rate=0.01, momentum=0.5), losses, steps=10_000)
        ends.append(course[-1])
        if factor == 1:
            assert course[2] == pytest.approx(0.2 + 0.01 * 0.5 * 0.8)
    assert ends[0] > ends[1] > ends[2] > 0.2


def test_the_loss_of_taid_is_the_cross_entropy():
    student, teacher = torch.randn(2, 5, 9, dtype=torch.float64)
    loss, stats = taid_objective()(student_logits=student, teacher_logits=teacher, return_stats=True)
    target = torch.softmax(0.6 * student + 0.4 * teacher, -1)
    cross_entropy = -(target * student.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss + stats["entropy_r"] / 5, cross_entropy)


def test_a_state_that_was_saved_goes_on_to_the_last_bit():
    losses = [3 / (1 + i) + 0.1 * math.sin(i) for i in range(20)]
    whole = course_of(TAID(rate=0.05), losses, 20)
    first, second = TAID(rate=0.05), TAID(rate=0.05)
    course_of(first, losses[:7], 20)
    second.load_state_dict(first.state_dict())
    rest = []
    for step in range(7, 20):
        second.update(step, 20, {"loss": 0.3 * losses[step], "entropy_r": 0.7 * losses[step]})
        rest.append(second.values["lam"])
    assert rest == whole[8:]
    assert all(x is None or isinstance(x, float) for x in TAID().state_dict().values())


def test_it_sets_the_assistant():
    objective, schedule = taid_objective(0.9), TAID(0.25)
    schedule.begin(objective)
    assert objective.assistant.lam == 0.25
    for step in range(2):
        schedule.update(step, 2, {"loss": 1.0, "entropy_r": 1.0})
        schedule.apply(objective)
    assert objective.assistant.lam == 0.25 + 0.75 / 2


@pytest.mark.parametrize(
    ("objective", "schedule", "message"),
    [
        (
            Objective(KL()),
            TAID(),
            "TAID moves lam of an assistant, but Objective.* has none; choose",
        ),
        (AdaptiveKL(), TAID(), "AdaptiveKL.* has none"),
        (Objective(KL(), AlphaMixture()), TAID(), "ends where the objective cannot: order='pr' with lam=1"),
        (taid_objective(), TAID(0), "order='rq' with lam=0 has no gradient"),
    ],
)
def test_what_it_cannot_move_is_named_before_training(objective, schedule, message):
    with pytest.raises(InputError, match=message):
        schedule.begin(objective)


def test_a_smaller_end_suits_an_objective_without_a_gradient_at_one():
    objective = Objective(KL(), AlphaMixture())
    TAID(0.1, end=0.9).begin(objective)
    assert objective.assistant.lam == 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": -0.1}, "schedule.start=-0.1"),
        ({"start": 0.5, "end": 0.4}, "schedule.end=0.4"),
        ({"end": 1.1}, "schedule.end=1.1"),
        ({"rate": -1}, "schedule.rate=-1"),
        ({"rate": math.nan}, "schedule.rate=nan"),
        ({"momentum": 1}, "schedule.momentum=1"),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(InputError, match=message):
        TAID(**wrong)
