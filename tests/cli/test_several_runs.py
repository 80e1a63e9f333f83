"""Several runs: methods, sweeps, and the other runs when one run fails."""

import logging
import math
import re
import shutil

import pytest
import yaml
from command_line import curve, run

from amid import results
from amid.config.folders import CONF
from amid.config.run_names import run_name
from amid.errors import Busy, InputError
from amid.results import RunResult, save
from amid.tracking.status import only_process_in


def test_the_log_of_a_run_does_not_name_the_next(quick, tmp_path, monkeypatch):
    def logged(plan, directory, labels):
        logging.getLogger("amid").warning("a word of the run")
        raise InputError("enough")

    monkeypatch.setattr("amid.experiment.run.run_experiment", logged)
    assert run("train", "-m", *quick, "assistant.alpha=-1,1") == 1
    logs = [file.read_text() for file in (tmp_path / "runs").glob("*/run.log")]
    assert len(logs) == 2
    assert all(log.endswith("WARNING amid: a word of the run\n") and log.count("\n") == 1 for log in logs)


LOGGED = {
    "amid": {"alpha", "lam", "entropy_r"},
    "taid": {"lam"},
    "imitkd": {"student_text", "student_text_tokens"},
    "gkd": {"student_text"},
    "minillm": {"importance", "to_go", "plain_text_loss"},
}
"""What steps tell of a method besides the loss."""


FEW = {
    "trainer.max_epochs": 1,
    "generation.seeds": "[1]",
    "generation.samples": 1,
    "data.test_prompts": 1,
    "data.valid_prompts": 1,
    "generation.max_new_tokens": 2,
    "trainer.log_every_n_steps": 1,
}


def of_few_answers(overrides):
    """Overrides of a run that trains for an epoch and answers a prompt of each set."""
    return [o for o in overrides if o.split("=")[0] not in FEW] + [f"{k}={value}" for k, value in FEW.items()]


@pytest.mark.slow
def test_every_method_trains(quick, tmp_path):
    methods = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))
    assert {"taid", "akl", "bdkd", "tvd", "jsd", "alphanet", "gkd", "amid", "sft"} <= set(methods)
    base = of_few_answers(quick)
    assert run("train", "-m", *base, f"method={','.join(methods)}") == 0
    found = {result.labels["method"]: result for result in results.load_all(tmp_path / "runs")}
    assert sorted(found) == methods
    still = {method: found.pop(method) for method in ("teacher", "start")}
    for result in still.values():
        assert result.training["steps"] == 0
        assert result.training["valid_loss"] == result.training["valid_loss_before"]
    assert still["teacher"].training["valid_loss"] != still["start"].training["valid_loss"]
    assert still["start"].training["valid_loss"] == found["sft"].training["valid_loss_before"]
    for method, result in found.items():
        assert result.training["steps"] == 2
        assert math.isfinite(result.training["valid_loss"])
        assert result.training["valid_loss"] != result.training["valid_loss_before"]
        logged = {
            key for row in curve(tmp_path / "runs" / result.name) for key, value in row.items() if value
        }
        assert {f"train/{name}" for name in {"loss", *LOGGED.get(method, ())}} <= logged


def test_a_sweep_runs_grid_and_baselines_skips_the_finished_and_reports(quick, tmp_path, capsys):
    sweep = ["sweep", "alpha", *of_few_answers(quick), "assistant.alpha=-1", "divergence=kl", "seed=1"]
    sweep.append("generation.samples=2")  # the diversity of answers to a prompt
    assert run(*sweep) == 0
    out = capsys.readouterr().out
    runs = sorted(p.parent.name for p in (tmp_path / "runs").glob("*/result.json"))
    methods = {results.load(tmp_path / "runs" / name).labels["method"] for name in runs}
    assert methods == {"amid", "teacher", "start", "sft", "kd"}
    assert len(runs) == 5
    told = re.findall(r"run \d of 5: \S+(  \(about \d+ s left in all\))?", out)
    assert [bool(left) for left in told] == [False, True, True, True, True]
    assert "SFT" in out
    assert "report.md" in out
    shutil.rmtree(tmp_path / "runs" / runs[0])
    assert run(*sweep) == 0
    out = capsys.readouterr().out
    assert out.count("is finished already") == 4


@pytest.mark.slow
def test_failed_runs_among_others_stand_in_the_report(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text('{"instruction": "Say", "output": "so"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    assert run("train", "-m", *quick, "+data.test.own=good.jsonl,empty.jsonl") == 1
    out = capsys.readouterr().out
    assert "run 1 of 2: " in out
    assert "run 2 of 2: " in out
    (failed,) = [file.parent for file in tmp_path.glob("runs/*/status.json") if "failed" in file.read_text()]
    told = f"{failed.name}: failed, data file empty.jsonl is empty; give a file with one example a row"
    assert run("report", tmp_path / "runs") == 0
    assert told in " ".join(capsys.readouterr().out.split())
    for page in ("report.md", "report.html"):
        assert told in (tmp_path / "runs" / "report" / page).read_text()
    for result in tmp_path.glob("runs/*/result.json"):
        shutil.rmtree(result.parent)
    assert run("report", tmp_path / "runs") == 1
    assert f"no finished run to report ({told}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "which", "message"),
    [
        (
            ["generation.top_p=0.9,2"],
            "run 2 of 2 (generation.top_p=2)",
            "generation.top_p=2 must be a number above 0, up to 1",
        ),
        (["assistant.lam=0.1,1"], "run 2 of 2 (assistant.lam=1)", "has no gradient"),
        (
            ["method=amid,kd", "assistant.alpha=-1"],
            "run 2 of 2 (method=kd)",
            "assistant.alpha=-1: method=kd (assistant=none) has no assistant; use method=amid",
        ),
        (
            ["data.max_length=64,8"],
            "run 2 of 2 (data.max_length=8)",
            "leaves no room for a response",
        ),
        (["+data.test.own=null,no.jsonl"], "run 2 of 2 (+data.test.own=no.jsonl)", "no.jsonl cannot be read"),
        (
            ["optimizer.lr=1e-3,-1"],
            "run 2 of 2 (optimizer.lr=-1)",
            "optimizer.lr=-1 must be a finite number from 0",
        ),
        (["trainer.devices=1,-2"], "run 2 of 2 (trainer.devices=-2)", "trainer.devices=-2"),
        (
            ["model.student.sft.trainer.devices=1,2"],
            "run 2 of 2 (model.student.sft.trainer.devices=2)",
            "model.student.sft.trainer.devices=2",
        ),
    ],
)
def test_several_runs_one_of_which_would_be_refused_start_none(
    quick, tmp_path, capsys, overrides, which, message
):
    keys = {o.split("=")[0] for o in overrides}
    base = [o for o in quick if o.split("=")[0] not in keys]
    assert run("train", "-m", *base, *overrides) == 1
    err = capsys.readouterr().err
    assert f"amid: {which}: " in err
    assert message in err
    assert err.rstrip().endswith("nothing was started")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_runs_of_different_settings_are_different_rows(quick, tmp_path, monkeypatch, capsys):
    from amid.reporting import build_table

    def finished(plan, directory, labels):
        result = RunResult(directory.name, labels, "", plan.seed, {"open": {}}, {}, {}, {})
        save(result, directory)
        return result

    monkeypatch.setattr("amid.experiment.run.run_experiment", finished)
    monkeypatch.chdir(tmp_path)
    assert run("train", "-m", *quick, "optimizer.lr=1e-3,2e-3", "seed=1,2") == 0
    assert capsys.readouterr().out.endswith("\nReport: amid report runs\n")
    table = build_table(results.load_all(tmp_path / "runs"))
    assert sorted(len(row.runs) for row in table.rows) == [2, 2]


def test_runs_that_failed_in_other_processes_are_told(quick, tmp_path, capsys, monkeypatch):
    """As with a launcher such as joblib, whose jobs share nothing with this process."""

    def nothing(cfg):
        pass

    monkeypatch.setattr("amid.cli.train.run", nothing)
    assert run("train", "-m", *quick, "seed=1,2") == 1
    assert (
        f"has no result of seed=1, seed=2; amid status {tmp_path / 'runs'} shows why"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_left_alone(quick, tmp_path, capsys, monkeypatch):
    def refused(plan, directory, labels):
        raise InputError("enough")

    one, both = [*quick, "seed=1"], ["-m", *quick, "seed=1,2"]
    name = run_name(one)
    folder = tmp_path / "runs" / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / "status.json").write_text("{}")
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(one))  # of a single run, which -m finds
    with only_process_in(folder):
        assert run("train", *one) == 1
        assert (folder / "status.json").read_text() == "{}"
        assert "is being run by another process; amid status" in capsys.readouterr().err
        told = f"1 left to other processes, which run them: {name}; amid status {tmp_path / 'runs'} shows"
        with monkeypatch.context() as patched:
            patched.setattr("amid.experiment.run.run_experiment", refused)
            assert run("train", *both) == 1
        out, err = capsys.readouterr()
        assert told in out
        assert "enough" in err
        assert run("train", *both) == 0
        assert told in capsys.readouterr().out
    assert not (folder / "result.json").exists()
    assert run("train", *one) == 0
    assert (folder / "result.json").exists()


def test_a_mistake_for_a_run_that_another_process_is_at_leaves_that_alone(quick, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "status.json").write_text("{}")
    of_mine = [*quick, f"hydra.run.dir={folder}"]
    with only_process_in(folder):
        assert run("train", *of_mine) == 1
        assert "is being run by another process" in capsys.readouterr().err
        assert run("train", *of_mine, "method=sft", "divergence=kl") == 1
        assert "has no divergence" in capsys.readouterr().err
        assert (folder / "status.json").exists()
    assert run("train", *of_mine, "assistant.alpha=oops") == 1
    assert (folder / "status.json").read_text() == "{}"


@pytest.mark.slow
def test_a_missing_model_among_runs_that_a_sweeper_chooses_has_failed(quick, tmp_path, capsys):
    arguments = ["seed=1,2", "model.student.path=/none", "model.student.architecture=null"]
    assert run("train", *quick, "-m", "hydra/sweeper=basic", *arguments) == 1
    capsys.readouterr()
    assert run("status", tmp_path / "runs") == 0
    assert "2 runs: 2 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_whose_runs_are_all_elsewhere_leaves_them_there(quick, tmp_path, capsys, monkeypatch):
    def elsewhere(directory):
        raise Busy(str(directory))

    monkeypatch.setattr("amid.cli.train.only_process_in", elsewhere)
    assert run("sweep", "alpha", *quick, "assistant.alpha=-1", "divergence=kl", "seed=1") == 0
    out = capsys.readouterr().out
    assert "5 left to other processes" in out
    assert not (tmp_path / "runs" / "report").exists()
