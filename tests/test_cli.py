import csv
import json
import logging
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

from amid import results
from amid.cli import main
from amid.config import CONF, run_name
from amid.errors import InputError


def run(*arguments):
    return main([str(a) for a in arguments])


def curve(directory):
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_help_and_version(capsys):
    assert run("--help") == 0
    assert "amid sweep NAME" in capsys.readouterr().out
    assert run("--version") == 0
    assert run("sweep") == 0
    assert "alpha" in capsys.readouterr().out
    assert run("trian") == 1
    assert "did you mean 'train'? Choose one of train, evaluate" in capsys.readouterr().err
    assert run("nope") == 1
    assert "'nope' is no command of amid; choose one of train, evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["--help", "train --help", "sweep", "sweep alpha --dry-run"])
def test_a_closed_pipe_ends_it_quietly(command, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "amid", *command.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("report", "finished runs below FOLDER"),
        ("status", "--follow refreshes"),
        ("dashboard", "the W&B workspace of a sweep"),
        ("sweep", "--dry-run lists the runs"),
        ("sweep alpha", "--dry-run lists the runs"),
        ("score", "Scores files of answers"),
        ("evaluate", "Score the student of a finished run again, run=FOLDER"),
        ("cache", "Write the teacher's states"),
    ],
)
def test_help_of_a_command_says_what_it_does(command, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*command.split(), "--help") == 0
    assert words in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["status", "report", "score", "dashboard"])
def test_an_interrupt_of_what_has_no_runs_says_nothing(command, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"amid.{command}.run", interrupted)
    assert run(command, tmp_path) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["train", "evaluate", "cache"])
def test_several_values_without_multirun_are_one_line_with_the_command_for_them(
    command, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(command, "seed=1", "assistant.alpha=-5,1") == 1
    err = capsys.readouterr().err
    assert f"amid {command} -m assistant.alpha=-5,1" in err
    assert "seed" not in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_evaluate_without_a_model_or_a_whole_seed_says_what_it_takes(tmp_path, capsys):
    assert run("evaluate", f"output_dir={tmp_path}") == 1
    err = capsys.readouterr().err
    assert "or a model and data, model.student.path=MODEL data=dolly" in err
    assert run("evaluate", f"output_dir={tmp_path}", "model.student.path=any") == 1
    assert "or a model and data" in capsys.readouterr().err
    assert run("evaluate", f"output_dir={tmp_path}", "model.student.path=any", "seed=1.5") == 1
    assert "seed=1.5 must be a whole number" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))


def test_refused_evaluations_count_as_failed_and_a_single_one_leaves_no_folder(tmp_path, capsys):
    out = f"output_dir={tmp_path / 'scores'}"
    assert run("evaluate", "run=nope", out) == 1
    assert not list((tmp_path / "scores").iterdir())
    assert run("evaluate", "-m", "run=nope,none", out) == 1
    capsys.readouterr()
    assert run("status", tmp_path / "scores") == 0
    assert "2 runs: 2 failed" in capsys.readouterr().out
    assert run("report", tmp_path / "scores") == 1
    assert "no finished run to report (run=none: failed" in capsys.readouterr().err


def test_the_log_of_a_run_does_not_name_the_next(quick, tmp_path, monkeypatch):
    def logged(cfg, directory, labels):
        logging.getLogger("amid").warning("a word of the run")
        raise InputError("enough")

    monkeypatch.setattr("amid.train.run_experiment", logged)
    assert run("train", "-m", *quick, "assistant.alpha=-1,1") == 1
    logs = [file.read_text() for file in (tmp_path / "runs").glob("*/run.log")]
    assert len(logs) == 2
    assert all(log.endswith("WARNING amid: a word of the run\n") and log.count("\n") == 1 for log in logs)


def test_train_leaves_a_whole_run_that_is_not_run_again(quick, tmp_path, capsys):
    assert run("train", *quick) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    result = results.load(directory)
    assert result.labels["divergence"] == "alpha_beta"
    assert (result.labels["alpha"], result.labels["lam"], result.labels["order"]) == (-5.0, 0.1, "pr")
    assert set(result.scores) == {"open", "closed"}
    assert {"rouge_l", "self_bleu", "corpus_self_bleu", "exact_match", "length", "eos_share"} <= set(
        result.scores["open"]
    )
    assert result.training["steps"] == 4
    assert 0 < result.training["step_seconds"] < result.timings["train"]
    assert 1e7 < result.training["peak_memory"] < 1e11
    assert (directory / "checkpoints" / "best" / "model.safetensors").exists()
    assert not list(directory.glob("checkpoints/*.ckpt"))
    assert json.loads((directory / "status.json").read_text())["state"] == "done"
    assert not (directory / "run.log").exists()
    lines = (directory / "generations" / "open-1.jsonl").read_text().splitlines()
    assert len(json.loads(lines[0])["answers"]) == 2
    capsys.readouterr()
    assert run("train", *quick) == 0
    assert "is finished already" in capsys.readouterr().out

    assert run("evaluate", f"run={directory}", f"output_dir={tmp_path / 'again'}") == 0
    (again,) = (tmp_path / "again").iterdir()
    assert results.load(again).scores == result.scores


def test_the_same_seed_gives_the_same_run(quick, tmp_path):
    for name in ("a", "b"):
        assert run("train", *quick, f"output_dir={tmp_path / name}", "trainer.log_every_n_steps=1") == 0
    (a,), (b,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    assert curve(a) == curve(b)
    assert results.load(a).scores == results.load(b).scores
    logged = {key for row in curve(a) for key, value in row.items() if value}
    assert {
        "train/loss",
        "train/gradient_norm",
        "train/entropy_r",
        "train/gradient_weight",
        "train/lr",
    } <= logged
    assert {"train/alpha", "train/lam", "valid/loss", "valid/rouge_l"} <= logged


def test_what_changes_speed_and_memory_changes_nothing_else(quick, tmp_path):
    curves, padding = [], []
    settings = ["data.micro_batch_size=null", "data.micro_batch_size=2", "data.tokens_per_batch=60"]
    for setting in (*settings, "objective.fused=false"):
        name = setting.replace("=", "-")
        arguments = [*quick, f"output_dir={tmp_path / name}", setting]
        assert run("train", *arguments, "data.batch_size=8", "trainer.log_every_n_steps=1") == 0
        (directory,) = (tmp_path / name).iterdir()
        rows = [row for row in curve(directory) if row["train/loss"]]
        curves.append([[float(row[f"train/{key}"]) for key in ("loss", "gradient_norm")] for row in rows])
        padding.append([float(row["train/padding"]) for row in rows])
    assert len(curves[0]) == 4
    for other in curves[1:]:
        torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(other), rtol=1e-4, atol=1e-6)
    assert all(0 <= share < 1 for shares in padding for share in shares)
    assert sum(padding[2]) < sum(padding[0])


@pytest.mark.parametrize(
    "limits",
    [[], ["trainer.max_steps=4"], ["trainer.max_epochs=-1", "trainer.max_steps=5"]],
    ids=["epochs", "steps", "within an epoch"],
)
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(
    quick, tmp_path, monkeypatch, capsys, limits
):
    keys = {o.split("=")[0] for o in limits}
    quick = [*(o for o in quick if o.split("=")[0] not in keys), *limits]
    assert run("train", *quick, f"output_dir={tmp_path / 'whole'}") == 0
    from amid.module import DistillationModule

    step = DistillationModule.training_step

    def killed(self, batches, index):
        if self.trainer.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", killed)
    assert run("train", *quick, f"output_dir={tmp_path / 'cut'}") == 130
    (cut,), (whole,) = (tmp_path / "cut").iterdir(), (tmp_path / "whole").iterdir()
    assert not (cut / "result.json").exists()
    assert (cut / "checkpoints" / "last.ckpt").exists()
    monkeypatch.setattr(DistillationModule, "training_step", step)
    shutil.copytree(cut, tmp_path / "torn" / cut.name)
    torn = tmp_path / "torn" / cut.name / "checkpoints" / "last.ckpt"
    torn.write_bytes(torn.read_bytes()[:1000])
    capsys.readouterr()
    assert run("train", *quick, f"output_dir={tmp_path / 'torn'}") == 0
    assert "last.ckpt is damaged: the run starts over\n" in capsys.readouterr().out
    assert results.load(tmp_path / "torn" / cut.name).scores == results.load(whole).scores
    assert run("train", *quick, f"output_dir={tmp_path / 'cut'}") == 0
    assert f"{cut} goes on after its last finished epoch\n" in capsys.readouterr().out
    assert results.load(cut).scores == results.load(whole).scores
    for figure in ("valid_loss", "steps"):
        assert results.load(cut).training[figure] == results.load(whole).training[figure]
    assert results.load(whole).training["steps"] == (5 if "trainer.max_steps=5" in limits else 4)


def test_a_limit_on_steps_that_is_not_reached_is_said(quick, tmp_path, capsys):
    assert run("train", *quick, "trainer.max_steps=40") == 0
    told = "trainer.max_steps=40 is not reached: 4 steps (2 epochs of 2); trainer.max_epochs sets this"
    assert told in capsys.readouterr().out


def test_a_run_interrupted_in_its_first_epoch_starts_over_and_says_so(quick, tmp_path, monkeypatch, capsys):
    from amid.module import DistillationModule

    def stopped(self, batches, index):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DistillationModule, "training_step", stopped)
        assert run("train", *quick) == 130
    assert "finished runs and epochs stay. To go on: amid train" in capsys.readouterr().err
    (directory,) = (tmp_path / "runs").iterdir()
    assert json.loads((directory / "status.json").read_text())["state"] == "interrupted"
    assert run("train", *quick) == 0
    assert "stopped before its first epoch ended: it starts over\n" in capsys.readouterr().out
    assert results.load(directory).training["steps"] == 4


def test_every_method_trains(quick, tmp_path):
    methods = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))
    assert {"taid", "akl", "bdkd", "tvd", "jsd", "alphanet", "gkd", "amid", "sft"} <= set(methods)
    few = {
        "trainer.max_epochs": 1,
        "generation.seeds": "[1]",
        "generation.samples": 1,
        "data.test_prompts": 1,
    }
    few |= {"data.valid_prompts": 1, "generation.max_new_tokens": 2}
    base = [o for o in quick if o.split("=")[0] not in few] + [f"{key}={value}" for key, value in few.items()]
    assert run("train", "-m", *base, f"method={','.join(methods)}") == 0
    found = {result.labels["method"]: result for result in results.load_all(tmp_path / "runs")}
    assert sorted(found) == methods
    still = {method: found.pop(method) for method in ("teacher", "start")}
    for result in still.values():
        assert result.training["steps"] == 0
        assert result.training["valid_loss"] == result.training["valid_loss_before"]
    assert still["teacher"].training["valid_loss"] != still["start"].training["valid_loss"]
    assert still["start"].training["valid_loss"] == found["sft"].training["valid_loss_before"]
    for result in found.values():
        assert result.training["steps"] == 2
        assert math.isfinite(result.training["valid_loss"])
        assert result.training["valid_loss"] != result.training["valid_loss_before"]


def test_the_schedule_of_taid_moves_lam_alike_however_a_step_is_cut_and_goes_on_after_a_kill(
    quick, tmp_path, monkeypatch
):
    from amid.module import DistillationModule

    taid = [*quick, "method=taid", "schedule.rate=0.5", "data.batch_size=8", "trainer.log_every_n_steps=1"]
    cuts = ("data.micro_batch_size=null", "data.micro_batch_size=2", "objective.fused=false")
    for cut in cuts:
        assert run("train", *taid, cut, f"output_dir={tmp_path / cut}") == 0
    courses = [courses_of(tmp_path / cut) for cut in cuts]
    lams = [lam for lam, _ in courses[0]]
    assert len(lams) == 4
    assert lams[0] == lams[1] == pytest.approx(0.4)
    assert lams[1] < lams[2] < lams[3] < 1
    for other in courses[1:]:
        torch.testing.assert_close(torch.tensor(courses[0]), torch.tensor(other), rtol=1e-4, atol=1e-6)

    step = DistillationModule.training_step

    def killed(self, batches, index):
        if self.trainer.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", killed)
    assert run("train", *taid, cuts[0], f"output_dir={tmp_path / 'cut'}") == 130
    monkeypatch.setattr(DistillationModule, "training_step", step)
    assert run("train", *taid, cuts[0], f"output_dir={tmp_path / 'cut'}") == 0
    assert courses_of(tmp_path / "cut") == courses[0][2:]
    (whole,), (cut,) = (results.load_all(tmp_path / name) for name in (cuts[0], "cut"))
    assert cut.scores == whole.scores
    assert cut.training["valid_loss"] == whole.training["valid_loss"]


def courses_of(folder):
    (directory,) = folder.iterdir()
    rows = [row for row in curve(directory) if row["train/loss"]]
    return [(float(row["train/lam"]), float(row["train/loss"])) for row in rows]


def test_a_sweep_runs_grid_and_baselines_skips_the_finished_and_reports(quick, tmp_path, capsys):
    sweep = ["sweep", "alpha", *quick, "assistant.alpha=-1,1", "divergence=kl", "seed=1"]
    assert run(*sweep) == 0
    out = capsys.readouterr().out
    runs = sorted(p.parent.name for p in (tmp_path / "runs").glob("*/result.json"))
    assert len(runs) == 4
    assert {results.load(tmp_path / "runs" / name).labels["method"] for name in runs} == {"amid", "sft", "kd"}
    assert "SFT" in out
    assert "report.md" in out
    shutil.rmtree(tmp_path / "runs" / runs[0])
    assert run(*sweep) == 0
    out = capsys.readouterr().out
    assert out.count("is finished already") == 3


def test_wandb_offline(quick, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert run("train", *quick, "logger=wandb") == 0
    assert "wandb sync" in capfd.readouterr().out
    assert list((tmp_path / "runs").glob("*/wandb/offline-run-*"))
    assert list((tmp_path / "runs").glob("*/metrics.csv"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["assistant.lam=1.5"], "lam must lie in [0, 1], got lam=1.5"),
        (["assistant.lam=1"], "no gradient"),
        (["seed=1.5"], "seed=1.5 must be a whole number"),
        (["trainer.max_steps=ten"], "trainer.max_steps=ten must be a whole number; -1 is no limit"),
        (["generation.seeds=10"], "generation.seeds=10 must be a list, such as generation.seeds=[10]"),
        (["assistant.alpha=nan"], "alpha must be a finite number"),
        (["method=kd", "objective.order=pr"], "names the assistant r"),
        (["method=kd", "schedule=taid"], "schedule TAID moves lam of an assistant"),
        (["schedule=taid"], "schedule TAID ends where the objective cannot: order='pr' with lam=1"),
        (["divergence=foo"], "no option of 'divergence'"),
        (["data=jsonl"], "data.train has no value"),
        (["data.max_length=8"], "data.max_length=8"),
        (["data=jsonl", "data.train=nope.jsonl", "data.valid=nope.jsonl"], "nope.jsonl cannot be read"),
        (
            ["model.teacher.path=/no/where", "model.teacher.architecture=null", "model.teacher.sft=null"],
            "/no/where",
        ),
    ],
)
def test_a_mistake_is_one_line_and_no_result(quick, tmp_path, capsys, overrides, message):
    keys = {o.split("=")[0] for o in overrides}
    drop = ("data.train.size", "data.valid.size") if "data=jsonl" in overrides else ()
    base = [o for o in quick if o.split("=")[0] not in drop and o.split("=")[0] not in keys]
    assert run("train", *base, *overrides) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list((tmp_path / "runs").glob("*"))


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
            "generation.top_p=2 must be in (0, 1]",
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
        (["optimizer.lr=1e-3,-1"], "run 2 of 2 (optimizer.lr=-1)", "optimizer: torch.optim.AdamW"),
        (["trainer.devices=1,2"], "run 2 of 2 (trainer.devices=2)", "trainer.devices=2"),
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


def test_an_interrupt_that_a_library_turns_into_an_error_of_its_own_is_an_interrupt(
    quick, tmp_path, capsys, monkeypatch
):
    def interrupted(self, *_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("no such key") from error

    monkeypatch.setattr("amid.models.ModelSource.load", interrupted)
    assert run("train", *quick) == 130
    assert "To go on: amid train" in capsys.readouterr().err
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"


def test_a_folder_of_another_configuration_is_left_alone(quick, tmp_path, capsys):
    assert run("train", *quick) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace(results.load(directory).config_hash, "0" * 12, 1))
    assert run("train", *quick) == 1
    assert "another configuration" in capsys.readouterr().err
    assert (directory / "result.json").exists()


def test_no_right_to_write(quick, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("train", *quick, f"output_dir={tmp_path / 'file'}") == 1
    assert "choose another output_dir=" in capsys.readouterr().err


def prepared_names(folder):
    return sorted(path.parent.name for path in folder.glob("*/result.json"))


def test_the_student_trains_in_train_mode_and_the_teacher_never(quick, monkeypatch):
    from amid.module import DistillationModule

    seen = []
    step = DistillationModule.training_step

    def watched(self, batches, index):
        if self.teacher is not None:
            seen.append((self.student.training, self.teacher.model.training))
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", watched)
    assert run("train", *quick) == 0
    assert set(seen) == {(True, False)}


def test_neither_sampling_nor_speed_makes_the_models_anew(quick, prepared):
    assert run("train", *quick) == 0
    before = prepared_names(prepared)
    further = ["generation.seeds=[3]", "data.valid_prompts=2", "data.tokens_per_batch=99", "threads=2"]
    base = [o for o in quick if not o.startswith(("generation.seeds", "data.valid_prompts"))]
    assert run("train", *base, *further, "trainer.log_every_n_steps=1", "seed=5") == 0
    assert prepared_names(prepared) == before


def test_a_mistake_in_an_evaluation_set_comes_before_training_and_can_be_mended(
    quick, tmp_path, jsonl, capsys, monkeypatch
):
    path = jsonl("{broken")
    new = [*quick, f"prepared_dir={tmp_path / 'new'}", f"+data.test.mine={path}"]
    assert run("train", *new) == 1
    assert "data.jsonl:1: not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert not [*(tmp_path / "runs").iterdir()]
    logging.getLogger("amid").warning("the log of a removed folder is not written to")
    jsonl({"instruction": "a", "output": "b"})
    assert run("train", *new) == 0


@pytest.mark.parametrize(
    ("command", "bad"),
    [("train", "train"), ("train", "valid"), ("train", "plain_text"), ("cache", "train"), ("cache", "valid")],
)
def test_a_mistake_in_a_row_comes_before_anything_is_announced(
    quick, tmp_path, jsonl, capsys, monkeypatch, command, bad
):
    monkeypatch.setattr("amid.precision.times_as_long", lambda: 9.0)
    good = jsonl({"instruction": "a", "output": "b", "text": "c"})
    files = dict.fromkeys(("train", "valid", "plain_text"), good) | {bad: jsonl("{broken", name="bad.jsonl")}
    base = [o for o in quick if not o.startswith(("data.train.size", "data.valid.size"))]
    own = ["data=jsonl", *(f"data.{name}={file}" for name, file in files.items())]
    new = [f"prepared_dir={tmp_path / 'new'}", "trainer.precision=bf16-mixed"]
    assert run(command, *base, *own, *new) == 1
    out, err = capsys.readouterr()
    assert "bad.jsonl:1: not valid JSON" in err
    assert [line for line in out.splitlines() if not line.startswith("run ")] == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        (
            ["teacher.max_steps=3", "teacher.max_epochs=-1", "student.max_steps=-1", "student.max_epochs=2"],
            ["3 steps (1.5 epochs of 2); max_steps", "4 steps (2 epochs of 2); max_epochs"],
        ),
        (
            [
                *("teacher.max_steps=-1", "teacher.max_epochs=3", "teacher.limit_train_batches=1"),
                *("student.max_steps=9", "student.max_epochs=1", "student.limit_train_batches=0.5"),
            ],
            ["3 steps (3 epochs of 1); max_epochs", "1 step (1 epoch of 1); max_epochs"],
        ),
    ],
)
def test_a_run_says_what_it_cuts_and_how_long_its_models_are_fine_tuned(
    quick, tmp_path, jsonl, capsys, settings, lengths
):
    rows = [{"instruction": "say " * (40 if i % 4 else 2), "output": "a word"} for i in range(44)]
    train, valid = jsonl(*rows), jsonl(rows[0], name="valid.jsonl")
    of_sets = ("data.train", "data.valid", "data.test", "model.", "prepared_dir")
    own = [o for o in quick if not o.startswith(of_sets)]
    own += ["data=jsonl", "data/template=builtin", f"data.train={train}", f"data.valid={valid}"]
    own += ["data.max_prompt_length=30", "data.max_length=50", "data.tokens_per_batch=400"]
    own += [f"model.{setting.replace('.', '.sft.trainer.', 1)}" for setting in settings]
    assert run("train", *own, f"prepared_dir={tmp_path / 'prepared'}") == 0
    lines = capsys.readouterr().out.splitlines()
    (cut,) = [line for line in lines if line.startswith("Cut to")]
    assert cut == "Cut to data.max_prompt_length=30: 33 of 44 prompts of data.train"
    told = [line for line in lines if line.startswith("Fine-tuning")]
    for line, role, expected in zip(told, ("teacher", "student"), lengths, strict=True):
        (folder,) = [
            file.parent
            for file in (tmp_path / "prepared").glob("sft-*/result.json")
            if results.load(file).labels["role"] == role
        ]
        length, key = expected.split("; ")
        expected = f"{folder}: {length}; model.{role}.sft.trainer.{key} sets this"
        assert line == f"Fine-tuning the {role} first, once, in {expected}"
        assert results.load(folder).training["steps"] == int(length.split()[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=0", "model.student.sft.batch_size=0 must be at least 1"),
        ("trainer.max_epochs=null", "model.student.sft.trainer.max_epochs=null is no number of epochs"),
        (
            "trainer.max_steps=-1",
            "model.student.sft.trainer.max_epochs=-1 and model.student.sft.trainer.max_steps=-1",
        ),
    ],
)
def test_a_fine_tuning_that_cannot_be_is_refused_before_any(quick, tmp_path, capsys, override, message):
    new = f"prepared_dir={tmp_path / 'new'}"
    assert run("train", *quick, new, f"model.student.sft.{override}") == 1
    out, err = capsys.readouterr()
    assert message in err
    assert "Fine-tuning" not in out


def test_a_model_with_another_vocabulary_is_refused(quick, tmp_path, capsys):
    from amid.data.builtin import tokenizer

    folder = tmp_path / "other"
    assert run("train", *quick, "model.student.sft=null", f"output_dir={tmp_path / 'runs'}") == 0
    (directory,) = (tmp_path / "runs").iterdir()
    shutil.copytree(directory / "checkpoints" / "best", folder)
    other = tokenizer()
    other.add_tokens(["<new>"])
    other.save_pretrained(folder)
    given = [f"model.student.path={folder}", "model.student.architecture=null"]
    assert run("train", *quick, *given, f"output_dir={tmp_path / 'more'}") == 1
    assert "vocabularies do not match: token '<new>'" in capsys.readouterr().err


def test_evaluate_on_other_data_keeps_the_folder_of_each_run(quick, tmp_path, jsonl):
    path = jsonl({"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"})
    for seed in (1, 2):
        assert run("train", *quick, f"seed={seed}") == 0
    out = f"output_dir={tmp_path / 'scores'}"
    for directory in (tmp_path / "runs").iterdir():
        assert run("evaluate", f"run={directory}", f"+data.test.mine={path}", out) == 0
    scored = results.load_all(tmp_path / "scores")
    assert len(scored) == 2
    assert all(set(result.scores) == {"open", "closed", "mine"} for result in scored)
    assert all(result.timings["evaluate"] > 0 for result in scored)
    assert {result.labels["method"] for result in scored} == {"amid"}
    assert {result.seed for result in scored} == {1, 2}
    assert len({result.config_hash for result in scored}) == 2
    trained = results.load(directory).labels["settings"]
    assert scored[0].labels["settings"] == f"{trained},data.test.mine={path}"
    assert run("evaluate", f"run={directory}", "seed=3", out) == 1
    model = tmp_path / "model"
    shutil.copytree(next((tmp_path / "runs").iterdir()) / "checkpoints" / "best", model)
    sets = ["data=jsonl", "data/template=builtin", f"+data.test.mine={path}", "generation.max_new_tokens=3"]
    for pair in ("tiny", "gpt2_xl_to_gpt2"):
        given = [f"model={pair}", f"model.student.path={model}", *sets]
        assert run("evaluate", *given, f"output_dir={tmp_path / pair}") == 0


def test_runs_of_different_settings_are_different_rows(quick, tmp_path, monkeypatch, capsys):
    from amid.reporting import build_table

    monkeypatch.chdir(tmp_path)
    assert run("train", "-m", *quick, "optimizer.lr=1e-3,2e-3", "seed=1,2") == 0
    assert capsys.readouterr().out.endswith("\nReport: amid report runs\n")
    table = build_table(results.load_all(tmp_path / "runs"))
    assert sorted(len(row.runs) for row in table.rows) == [2, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.precision=16-mixed", "use bf16-mixed"),
        ("trainer.devices=2", "a run is trained on one device"),
        ("clip_norm=-1", "clip_norm=-1 must be above 0"),
        ("trainer.max_epochs=-1", "never end"),
        ("optimizer.lr=fast", "AdamW does not take lr=fast"),
        ("generation.samples=0", "generation.samples=0 must be at least 1"),
        ("generation.top_p=2", "must be in (0, 1]"),
    ],
)
def test_values_out_of_range(quick, capsys, override, message):
    key = override.split("=")[0]
    assert run("train", *(o for o in quick if not o.startswith(key)), override) == 1
    assert message in capsys.readouterr().err


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


@pytest.mark.parametrize("limit", ["data.micro_batch_size=2", "data.tokens_per_batch=64"])
def test_a_loss_that_is_no_sum_of_parts_takes_no_micro_batches(quick, capsys, limit):
    key = limit.split("=")[0]
    base = [o for o in quick if not o.startswith(key)]
    assert run("train", *base, "method=alphanet", "objective.maximum=batch", limit) == 1
    assert "is no sum of parts" in capsys.readouterr().err


def test_a_maximum_over_a_batch_is_over_each_micro_batch_where_the_mean_is_over_them(
    quick, tmp_path, monkeypatch
):
    from amid.module import DistillationModule

    divided = []
    denominators = DistillationModule._denominators

    def watched(self, micro_batches):
        divided.append(denominators(self, micro_batches))
        return divided[-1]

    monkeypatch.setattr(DistillationModule, "_denominators", watched)
    base = [o for o in quick if not o.startswith(("data.micro_batch_size", "data.tokens_per_batch"))]
    parts = ["data.mean=micro_batch", "data.micro_batch_size=2"]
    assert run("train", *base, "method=alphanet", "objective.maximum=batch", *parts) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert results.load(directory).diverged_step is None
    assert any(len(set(of_step)) > 1 for of_step in divided), "each micro-batch has a number of its own"


def test_a_preparation_that_diverges_is_an_error_each_time(quick, tmp_path, capsys):
    arguments = [*quick, f"prepared_dir={tmp_path / 'bad'}", "model.teacher.sft.optimizer.lr=inf"]
    for _ in range(2):
        assert run("train", *arguments) == 1
        assert "diverged at step 2; lower model.teacher.sft.optimizer.lr" in capsys.readouterr().err


def test_runs_that_failed_in_other_processes_are_told(quick, tmp_path, capsys, monkeypatch):
    """As with a launcher such as joblib, whose jobs share nothing with this process."""

    def nothing(cfg):
        pass

    monkeypatch.setattr("amid.train.run", nothing)
    assert run("train", "-m", *quick, "seed=1,2") == 1
    names = ", ".join(run_name([*quick, f"seed={seed}"]) for seed in (1, 2))
    assert f"of {names}; amid status {tmp_path / 'runs'} says why" in capsys.readouterr().err


def test_a_run_that_another_process_is_at_is_left_alone(quick, tmp_path, capsys):
    from amid.monitor import alone

    name = run_name(quick)
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    with alone(folder):
        assert run("train", *quick) == 1
    assert "is being run by another process; amid status" in capsys.readouterr().err
    assert not (folder / "status.json").exists()
    assert run("train", *quick) == 0
    assert (folder / "result.json").exists()


def test_a_defect_leaves_its_traceback_and_a_mistake_does_not(quick, tmp_path, capsys, monkeypatch):
    def defective(*_):
        list(zip([1], [], strict=True))

    monkeypatch.setattr("amid.train.run_experiment", defective)
    assert run("train", *quick) == 1
    assert "error.log" in capsys.readouterr().err
    (log,) = tmp_path.glob("runs/*/error.log")
    assert "zip() argument 2 is shorter" in log.read_text()


def test_what_an_evaluation_is_given_goes_before_what_its_run_had(quick, tmp_path, jsonl, capsys):
    assert run("train", *quick) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    path = jsonl({"instruction": "say it", "output": "it"})
    out = f"output_dir={tmp_path / 'again'}"
    given = [f"run={folder}", out, f"data.test.open={path}", "~data.test.closed", "data/metrics=summary"]
    assert run("evaluate", *given, "name=teacher") == 0
    (again,) = [results.load(file) for file in (tmp_path / "again").glob("*/result.json")]
    assert list(again.scores) == ["open"]
    assert {"rouge_l", "rouge_1", "rouge_2"} <= again.scores["open"].keys()
    assert again.labels["method"] == "teacher"
    (evaluation,) = (tmp_path / "again").iterdir()
    assert run("evaluate", f"run={evaluation}", out) == 1
    assert "has no student in checkpoints/best; give a training run" in capsys.readouterr().err


def test_a_model_that_is_evaluated_has_its_own_name(quick, tmp_path, jsonl):
    assert run("train", *quick) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    path = jsonl({"instruction": "say it", "output": "it"})
    given = [f"model.student.path={folder / 'checkpoints' / 'best'}", "data=jsonl", f"+data.test.own={path}"]
    given += ["data/template=builtin", "data.max_length=40", "data.max_prompt_length=16"]
    out = f"output_dir={tmp_path / 'scores'}"
    assert run("evaluate", *given, out, "generation.seeds=[1]") == 0
    (scored,) = [results.load(file) for file in (tmp_path / "scores").glob("*/result.json")]
    assert (scored.labels["method"], scored.labels["model"]) == ("best", "best")
