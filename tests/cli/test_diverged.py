"""Runs that diverge."""

import pytest
from command_line import run

from amid import results
from amid.generation.sampling import Sampling


@pytest.mark.slow
def test_a_run_that_diverges_ends_at_once_and_is_neither_run_again_nor_scored(quick, tmp_path, capsys):
    arguments = ["train", *quick, "optimizer.lr=1e300"]
    assert run(*arguments) == 0
    assert "diverged at step 2: loss nan" in capsys.readouterr().out
    (directory,) = (tmp_path / "runs").iterdir()
    result = results.load(directory)
    assert (result.diverged_step, result.training["steps"]) == (2, 1)
    assert result.scores == {"open": {}, "closed": {}}
    assert result.training["valid_rouge_l_before"] >= 0
    assert not (directory / "checkpoints" / "best").exists()
    assert not list(directory.glob("checkpoints/*.ckpt"))
    assert run("report", tmp_path / "runs") == 0
    assert "diverged" in (tmp_path / "runs" / "report" / "table.md").read_text()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "is finished already" in capsys.readouterr().out
    assert run("evaluate", f"run={directory}", f"output_dir={tmp_path / 'scores'}") == 1
    assert "diverged at step 2: it has no student to score" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["text=student"], marks=pytest.mark.slow),  # the second step's answers
        pytest.param(  # the final answers
            ["data.valid_metric=null", "checkpoint=loss", "trainer.max_steps=1"], marks=pytest.mark.slow
        ),
        ["trainer.max_steps=1"],  # the validation's
    ],
)
def test_a_student_that_can_answer_no_more_has_diverged(quick, tmp_path, overrides):
    keys = {override.split("=")[0] for override in overrides}
    base = [o for o in quick if o.split("=")[0] not in keys]
    assert run("train", *base, "optimizer.lr=1e300", *overrides) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    result = results.load(directory)
    assert result.diverged_step == 1
    assert result.scores == {"open": {}, "closed": {}}


def test_no_answers_stay_of_a_student_that_diverged_in_the_second_set(quick, tmp_path, capsys, monkeypatch):
    answers_to_sets = Sampling.answers_to_sets

    def broken(self, model, tokenizer, sets, finished):
        for name, rung, seed, answers in answers_to_sets(self, model, tokenizer, sets, finished):
            if name != next(iter(sets)):
                raise FloatingPointError("no token is left")
            yield name, rung, seed, answers

    monkeypatch.setattr(Sampling, "answers_to_sets", broken)
    assert run("train", *quick) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert results.load(directory).diverged_step == 4
    assert run("score", directory) == 1
    assert "holds no generations" in capsys.readouterr().err
