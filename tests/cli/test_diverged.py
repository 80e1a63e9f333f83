"""Runs that diverge."""

import pytest
from command_line import run

from amid import results


def test_a_run_that_diverges_ends_at_once_and_is_not_run_again(quick, tmp_path, capsys):
    arguments = ["sweep", "alpha", *quick, "assistant.alpha=-1", "optimizer.lr=inf", "seed=1"]
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert out.count("diverged at step 2: loss nan") == 3
    directory = tmp_path / "runs" / next(p.name for p in (tmp_path / "runs").iterdir() if "alpha" in p.name)
    result = results.load(directory)
    assert (result.diverged_step, result.training["steps"]) == (2, 1)
    assert result.scores == {"open": {}, "closed": {}}
    assert result.training["valid_rouge_l_before"] >= 0
    assert not (directory / "checkpoints" / "best").exists()
    assert not list(directory.glob("checkpoints/*.ckpt"))
    assert "diverged" in (tmp_path / "runs" / "report" / "table.md").read_text()
    assert run(*arguments) == 0
    assert capsys.readouterr().out.count("is finished already") == 3


@pytest.mark.parametrize(
    "overrides",
    [
        ["text=student"],  # the second step's answers
        ["data.valid_prompts=null", "checkpoint=loss", "trainer.max_steps=1"],  # the final answers
        ["trainer.max_steps=1"],  # the validation's
    ],
)
def test_a_student_that_can_answer_no_more_has_diverged(quick, tmp_path, overrides):
    keys = {override.split("=")[0] for override in overrides}
    base = [o for o in quick if o.split("=")[0] not in keys]
    assert run("train", *base, "optimizer.lr=inf", *overrides) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    result = results.load(directory)
    assert result.diverged_step == 1
    assert result.scores == {"open": {}, "closed": {}}


def test_a_diverged_run_has_no_student_to_score(quick, tmp_path, capsys):
    assert run("train", *quick, "optimizer.lr=inf") == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert run("evaluate", f"run={directory}", f"output_dir={tmp_path / 'scores'}") == 1
    assert "diverged at step 2: it has no student to score" in capsys.readouterr().err
