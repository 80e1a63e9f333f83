import pytest

from amid.settings import nodes
from amid.training import precision
from amid.training.precision import announce_slow_bfloat16, times_as_long


def settings(teacher="float32", student="float32", training="32-true", accelerator="cpu"):
    trainer = nodes.Trainer.model_construct(precision=training, accelerator=accelerator)
    return trainer, {"teacher": nodes.ModelSource(dtype=teacher), "student": nodes.ModelSource(dtype=student)}


def test_what_is_slow_is_named_with_its_remedy(monkeypatch, capsys):
    monkeypatch.setattr(precision, "times_as_long", lambda: 300.4)
    announce_slow_bfloat16(*settings(teacher="bfloat16", training="bf16-mixed"))
    assert capsys.readouterr().out == (
        "bfloat16 (model.teacher.dtype=bfloat16, trainer.precision=bf16-mixed) takes 300 times as long as "
        "float32 on this processor; use model.teacher.dtype=float32 trainer.precision=32-true\n"
    )


@pytest.mark.parametrize(
    ("given", "times"),
    [(settings(), 300), (settings("bfloat16"), 2), (settings("bfloat16", accelerator="cuda"), 300)],
)
def test_else_nothing_is_said(monkeypatch, capsys, given, times):
    monkeypatch.setattr(precision, "times_as_long", lambda: times)
    announce_slow_bfloat16(*given)
    assert capsys.readouterr().out == ""


def test_the_time_is_measured():
    assert 0.01 < times_as_long() < 1e5
