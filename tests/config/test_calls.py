"""Functions of the user's own get each value under its name."""

from functools import partial

import pytest
import torch

from amid.config.calls import by_name, takes_names
from amid.losses import Objective
from amid.metrics.scores import set_score


def with_names(log_b, log_a, eps=3):
    return log_a, log_b, eps


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (with_names, (1, 2, 3)),
        (partial(with_names, eps=4), (1, 2, 4)),
        (lambda a, b: (a, b), (1, 2)),
        (lambda a, b, eps=3: (a, b, eps), (1, 2, 3)),
        (lambda *both: both, (1, 2)),
        (lambda **both: (both["log_a"], both["log_b"]), (1, 2)),
    ],
)
def test_names_come_before_the_order(function, expected):
    assert by_name(function, log_a=1, log_b=2) == expected


@pytest.mark.parametrize(
    "function",
    [lambda a: a, lambda a, eps=1: a, lambda a, b, c: a, lambda a, b, *, c: a, lambda: 1],
)
def test_no_value_goes_to_an_argument_of_another_meaning(function):
    with pytest.raises(TypeError, match="must take log_a and log_b"):
        takes_names(function, ("log_a", "log_b"))


def test_a_divergence_and_an_assistant_are_called_by_keyword():
    def divergence(log_b, log_a):
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    def assistant(log_q, log_p):
        return log_p + 0 * log_q

    student, teacher = torch.tensor([[0.0, 1.0]], requires_grad=True), torch.tensor([[2.0, 0.0]])
    loss = Objective(divergence)(student_logits=student, teacher_logits=teacher)
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert float(loss) == pytest.approx(float((p * (p / q).log()).sum()))
    own = Objective(divergence, assistant, "rq")(student_logits=student, teacher_logits=teacher)
    assert float(own) == pytest.approx(float(loss))
    with pytest.raises(ValueError, match=r"assistant=<lambda>\(a\) must take log_p and log_q"):
        Objective(divergence, lambda a: a)


def test_a_metric_is_called_by_keyword():
    def same(references, predictions):
        return [100.0 * (text in those) for text, those in zip(predictions, references, strict=True)]

    assert set_score(same, ["a", "b"], [["a"], ["c"]]).value == 50
