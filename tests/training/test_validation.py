import pytest
import torch

from amid.losses import AlphaMixture, MiniLLM, Objective, ReverseKL
from amid.measures import VALIDATION
from amid.training.validation import Measured, token_measures

OBJECTIVES = [Objective(ReverseKL(), AlphaMixture(-1.0, 0.1), order="pr"), MiniLLM()]


def sure(student_logits, teacher_logits):
    """A measure that differs between student and teacher, and between positions."""
    return student_logits.softmax(-1).amax(-1) - 2 * teacher_logits.softmax(-1).amax(-1)


def inputs(dtype=torch.float32):
    torch.manual_seed(1)
    hidden = {f"{role}_hidden": torch.randn(70, 16, dtype=dtype) for role in ("student", "teacher")}
    heads = {f"{role}_weight": torch.randn(30, 16, dtype=dtype) for role in ("student", "teacher")}
    return hidden | heads


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("chunk_tokens", [64, None])
def test_the_sums_stand_beside_those_of_the_objective(objective, chunk_tokens):
    given = inputs() | {"denominator": 1.0}
    logits = [given[f"{role}_hidden"] @ given[f"{role}_weight"].T for role in ("student", "teacher")]
    measured = Measured(objective, {"sure": sure})
    alone, stats = objective.fused(**given, chunk_tokens=chunk_tokens, return_stats=True)
    loss, sums = measured.fused(**given, chunk_tokens=chunk_tokens, return_stats=True)
    assert loss == alone
    expected = sure(*logits).sum()
    torch.testing.assert_close(sums.pop("sure"), expected)
    assert sums == stats
    on_logits, sums = measured(
        student_logits=logits[0], teacher_logits=logits[1], denominator=1.0, return_stats=True
    )
    torch.testing.assert_close(on_logits, alone)
    torch.testing.assert_close(sums["sure"], expected)


def test_it_asks_for_what_the_objective_needs():
    for objective in OBJECTIVES:
        measured = Measured(objective, {})
        for name in ("needs_teacher", "needs_labels", "uses_sampling", "uses_fused", "compiled"):
            assert getattr(measured, name) == getattr(objective, name)


def test_every_function_of_the_table_is_there():
    named = {name for name, measure in VALIDATION.items() if measure.computed_by}
    assert token_measures().keys() == named
    logits = torch.randn(2, 5, 40)
    for name, measure in token_measures().items():
        assert measure(*logits).shape == (5,), name
        assert VALIDATION[name].taken == "with a teacher"
