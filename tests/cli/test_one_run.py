"""One run of `amid train`: the files that it writes, that it repeats exactly, and that it resumes."""

import importlib.util
import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from command_line import curve, run

from amid import results
from amid.generation.sampling import Sampling


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
    log = (directory / "run.log").read_text()
    assert f"INFO amid: Run: {directory}\n" in log
    assert "lr_scheduler.step()" not in log
    lines = (directory / "generations" / "open-1.jsonl").read_text().splitlines()
    assert len(json.loads(lines[0])["answers"]) == 2
    capsys.readouterr()
    assert run("train", *quick) == 0
    assert "is finished already" in capsys.readouterr().out

    assert run("evaluate", f"run={directory}", f"output_dir={tmp_path / 'again'}") == 0
    (again,) = (tmp_path / "again").iterdir()
    assert results.load(again).scores == result.scores


def test_a_target_in_the_working_folder_is_found(quick, tmp_path, monkeypatch):
    code = "def squared(log_a, log_b):\n    return ((log_a.exp() - log_b.exp()) ** 2).sum(-1)\n"
    (tmp_path / "of_this_folder.py").write_text(code)
    (tmp_path / "vllm").mkdir()
    monkeypatch.chdir(tmp_path)
    own = ["divergence=kl", "divergence._target_=of_this_folder.squared", "+divergence._partial_=true"]
    assert run("train", *quick, *own) == 0
    (result,) = results.load_all(tmp_path / "runs")
    assert result.training["steps"] == 4
    assert result.labels["divergence"] == "squared", "not as the option in whose place it is"
    assert importlib.util.find_spec("vllm") is None, "a folder without modules is no package"


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


@pytest.mark.slow
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


REFUSED = {
    "data.batch_size=16": "another configuration: data.batch_size was 32, is 16; choose another output_dir=",
    "assistant.alpha=0.5": "another configuration: assistant.alpha was -5.0, is 0.5; choose",
    "+data.test.own=no.jsonl": "no.jsonl cannot be read",
    "data.max_length=8": "no room for a response",
    "assistant.lam=1": "no gradient",
}
"""Mistakes of a command that would go on with an interrupted run, and what is said of them."""


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param([], id="epochs", marks=pytest.mark.slow),
        pytest.param(["trainer.max_steps=4"], id="steps", marks=pytest.mark.slow),
        pytest.param(["trainer.max_epochs=-1", "trainer.max_steps=5"], id="within an epoch"),
    ],
)
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(
    quick, finished, tmp_path, monkeypatch, capsys, limits
):
    keys = {o.split("=")[0] for o in limits}
    quick = [*(o for o in quick if o.split("=")[0] not in keys), *limits]
    if limits:
        assert run("train", *quick, f"output_dir={tmp_path / 'whole'}") == 0
    (whole,) = (tmp_path / "whole").iterdir() if limits else [finished]
    from amid.training.module import DistillationModule

    step = DistillationModule.training_step

    def killed(self, batches, index):
        if self.trainer.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", killed)
    assert run("train", *quick, f"output_dir={tmp_path / 'cut'}") == 130
    (cut,) = (tmp_path / "cut").iterdir()
    assert not (cut / "result.json").exists()
    assert (cut / "checkpoints" / "last.ckpt").exists()
    monkeypatch.setattr(DistillationModule, "training_step", step)
    if not limits:
        torn = shutil.copytree(cut, tmp_path / "torn" / cut.name)
        checkpoint = torn / "checkpoints" / "last.ckpt"
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        capsys.readouterr()
        assert run("train", *quick, f"output_dir={tmp_path / 'torn'}") == 0
        told = f"last.ckpt is damaged: {torn} goes on after step 2 of its training, from best-epoch.ckpt\n"
        assert told in capsys.readouterr().out
        assert results.load(torn).scores == results.load(whole).scores
        kept = {file: file.read_bytes() for file in (cut / "status.json", *(cut / ".hydra").iterdir())}
        assert json.loads(kept[cut / "status.json"])["step"] == 3
        for override, told in REFUSED.items():
            assert run("train", *quick, override, f"hydra.run.dir={cut}") == 1
            assert told in capsys.readouterr().err
            assert {file: file.read_bytes() for file in kept} == kept
    assert run("train", *quick, f"output_dir={tmp_path / 'cut'}") == 0
    assert f"{cut} goes on after step 2 of its training\n" in capsys.readouterr().out
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert results.load(cut).scores == results.load(whole).scores
    for figure in ("valid_loss", "steps"):
        assert results.load(cut).training[figure] == results.load(whole).training[figure]
    assert results.load(whole).training["steps"] == (5 if "trainer.max_steps=5" in limits else 4)


@pytest.mark.parametrize("last", [1.0, 9.0], ids=["worse", "equal"])
@pytest.mark.slow
def test_a_run_cut_after_its_training_keeps_the_first_of_its_best_epochs(
    quick, finished, monkeypatch, capsys, last
):
    from amid.training.module import DistillationModule

    scores = iter([5.0, 9.0, last])  # before the training, after each epoch, and never again
    steps = []
    step = DistillationModule.training_step

    def noted(self, batches, index):
        steps.append(self.trainer.global_step)
        return step(self, batches, index)

    def killed(*_):
        raise KeyboardInterrupt

    capsys.readouterr()
    monkeypatch.setattr(DistillationModule, "training_step", noted)
    monkeypatch.setattr(DistillationModule, "_score", lambda *_: next(scores))
    with monkeypatch.context() as patched:
        patched.setattr("amid.experiment.run.evaluate_sets", killed)
        assert run("train", *quick) == 130
    assert "kept: step 2 of 4" in capsys.readouterr().out
    assert run("train", *quick) == 0
    assert steps == [0, 1, 2, 3]
    assert "kept: step 2 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("cut", ["in an epoch", "while scoring"])
@pytest.mark.slow
def test_the_figures_of_a_run_that_went_on_are_those_of_its_whole_training(
    quick, finished, tmp_path, monkeypatch, cut
):
    from amid.training.module import DistillationModule

    step = DistillationModule.training_step
    later, peak = 0, 7e9  # seconds by which each step puts the clock forward; the memory of the first process

    def slow(self, batches, index):
        nonlocal later
        if kills and cut == "in an epoch" and self.trainer.global_step == 3:
            raise KeyboardInterrupt
        later += 1000 + 1000 * (self.trainer.global_step == 0)
        return step(self, batches, index)

    def killed(*_):
        raise KeyboardInterrupt

    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + later)
    monkeypatch.setattr("amid.training.trainer.time", clock)
    monkeypatch.setattr("amid.training.trainer.peak_memory", lambda _: peak)
    monkeypatch.setattr(DistillationModule, "training_step", slow)
    with monkeypatch.context() as patched:
        kills = True
        patched.setattr("amid.experiment.run.evaluate_sets", killed)
        assert run("train", *quick) == 130
    kills, peak = False, 1e9
    assert run("train", *quick) == 0
    (result,) = results.load_all(tmp_path / "runs")
    training = result.training
    assert training["step_seconds"] == pytest.approx(1000, rel=0.02)
    assert training["peak_memory"] == 7e9
    # the step that was lost in the epoch that was cut is none of the training's
    seconds = training["response_tokens"] / training["response_tokens_per_second"]
    assert seconds == pytest.approx(5000, rel=0.02)
    assert seconds < result.timings["train"] < 5100


@pytest.mark.slow
def test_scoring_goes_on_with_the_sets_that_were_not_answered(quick, finished, tmp_path, monkeypatch):
    answers_to_sets, asked, later = Sampling.answers_to_sets, [], 0

    def killed_after_the_first_set(self, model, tokenizer, sets, finished):
        asked.extend([list(sets)] if sets else [])  # a fine-tuning has none
        nonlocal later
        for name, rung, seed, answers in answers_to_sets(self, model, tokenizer, sets, finished):
            if kill and name != next(iter(sets)):
                raise KeyboardInterrupt
            later += 100 * kill
            yield name, rung, seed, answers

    monkeypatch.setattr(Sampling, "answers_to_sets", killed_after_the_first_set)
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + later)
    monkeypatch.setattr("amid.experiment.evaluation.time", clock)
    kill = True
    assert run("train", *quick) == 130
    (folder,) = (tmp_path / "runs").iterdir()
    first, second = asked[0]
    before = (folder / "generations" / f"{first}-1.jsonl").stat().st_ino
    kill = False
    assert run("train", *quick) == 0
    assert asked == [[first, second], [second]]
    assert (folder / "generations" / f"{first}-1.jsonl").stat().st_ino == before
    assert results.load(folder).scores == results.load(finished).scores
    assert results.load(folder).timings["evaluate"] > 100

    kill = True  # answers of another student, or to other prompts, are not taken
    out = f"output_dir={tmp_path / 'again'}"
    assert run("evaluate", f"run={folder}", out) == 130
    kill = False
    assert run("evaluate", f"run={folder}", out, "data.test_prompts=2") == 0
    assert run("evaluate", f"run={folder}", out) == 0
    assert asked[2:] == [[first, second], [first, second], [second]]


@pytest.mark.slow
def test_a_run_whose_folder_was_moved_still_knows_its_best_epoch(
    quick, finished, tmp_path, monkeypatch, capsys
):
    from amid.training.module import DistillationModule

    scores = iter([5.0, 9.0, 1.0])
    step = DistillationModule.training_step
    folders = [tmp_path / name for name in ("a", "b", "c")]

    def killed(self, batches, index):
        if self.trainer.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batches, index)

    def killed_while_scoring(*_):
        raise KeyboardInterrupt

    capsys.readouterr()
    monkeypatch.setattr(DistillationModule, "_score", lambda *_: next(scores))
    with monkeypatch.context() as patched:
        patched.setattr(DistillationModule, "training_step", killed)
        assert run("train", *quick, f"output_dir={folders[0]}") == 130
    folders[0].rename(folders[1])
    with monkeypatch.context() as patched:
        patched.setattr("amid.experiment.run.evaluate_sets", killed_while_scoring)
        assert run("train", *quick, f"output_dir={folders[1]}") == 130
    assert "kept: step 2 of 4" in capsys.readouterr().out
    folders[1].rename(folders[2])
    assert run("train", *quick, f"output_dir={folders[2]}") == 0
    assert "kept: step 2 of 4" in capsys.readouterr().out


@pytest.mark.slow
def test_of_equal_epochs_the_earlier_is_kept_also_where_the_last_is_validated_after_the_training(
    quick, monkeypatch, capsys
):
    from amid.training.module import DistillationModule

    validated = []
    monkeypatch.setattr(
        DistillationModule, "_score", lambda self, _: validated.append(self.trainer.global_step) or 9.0
    )
    sparse = ["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"]
    assert run("train", *(o for o in quick if "max_epochs" not in o), *sparse) == 0
    assert validated[-3:] == [0, 4, 6]
    assert "kept: step 4 of 6" in capsys.readouterr().out


def test_a_limit_on_steps_that_is_not_reached_is_said(quick, tmp_path, capsys):
    assert run("train", *quick, "trainer.max_steps=40") == 0
    told = "trainer.max_steps=40 is not reached: 4 steps (2 epochs of 2); trainer.max_epochs sets this"
    assert told in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_interrupted_before_its_first_step_starts_over_and_says_so(
    quick, finished, tmp_path, monkeypatch, capsys
):
    from amid.training.module import DistillationModule

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DistillationModule, "validation_step", stopped)
        assert run("train", *quick) == 130
    told = "finished runs, checkpoints and answered sets stay. To go on: amid train"
    assert told in capsys.readouterr().err
    (directory,) = (tmp_path / "runs").iterdir()
    assert json.loads((directory / "status.json").read_text())["state"] == "interrupted"
    assert run("train", *quick) == 0
    assert "stopped before its first checkpoint: it starts over\n" in capsys.readouterr().out
    assert results.load(directory).training["steps"] == 4


@pytest.mark.slow
def test_the_schedule_of_taid_moves_lam_alike_however_a_step_is_cut_and_goes_on_after_a_kill(
    quick, tmp_path, monkeypatch, capsys
):
    from amid.training.module import DistillationModule

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
    within = [cuts[0], "checkpoint.every_n_steps=1"]
    assert run("train", *taid, *within, f"output_dir={tmp_path / 'cut'}") == 130
    monkeypatch.setattr(DistillationModule, "training_step", step)
    capsys.readouterr()
    assert run("train", *taid, *within, f"output_dir={tmp_path / 'cut'}") == 0
    assert "goes on after step 3 of its training\n" in capsys.readouterr().out
    assert courses_of(tmp_path / "cut") == courses[0]
    (whole,), (cut,) = (results.load_all(tmp_path / name) for name in (cuts[0], "cut"))
    assert cut.scores == whole.scores
    assert cut.training["valid_loss"] == whole.training["valid_loss"]


def courses_of(folder):
    (directory,) = folder.iterdir()
    rows = [row for row in curve(directory) if row["train/loss"]]
    return [(float(row["train/lam"]), float(row["train/loss"])) for row in rows]


def test_a_folder_of_another_configuration_is_left_alone(quick, finished, tmp_path, capsys):
    directory = shutil.copytree(finished, tmp_path / "runs" / finished.name)
    config = directory / "config.yaml"
    _, text = config.read_text().split("\n", 1)  # without its checksum
    config.write_text(text.replace(results.load(directory).config_hash, "f" * 12, 1))
    assert run("train", *quick) == 1
    assert "another configuration" in capsys.readouterr().err
    config.unlink()
    assert run("train", *quick, "optimizer.lr=1e-3", f"hydra.run.dir={directory}") == 1
    assert "another configuration" in capsys.readouterr().err
    (directory / "result.json").unlink()
    assert run("train", *quick) == 1
    assert "what differs is not recorded" in capsys.readouterr().err
    assert (directory / "checkpoints").exists()


def test_the_student_trains_in_train_mode_and_the_teacher_never(quick, monkeypatch):
    from amid.training.module import DistillationModule

    seen = []
    step = DistillationModule.training_step

    def watched(self, batches, index):
        if self.teacher is not None:
            seen.append((self.student.training, self.teacher.model.training))
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", watched)
    assert run("train", *quick) == 0
    assert set(seen) == {(True, False)}
