"""Whole runs on each text."""

import csv

import pytest
import torch

from amid import results
from amid.cli.main import main
from amid.generation.sampling import Sampling
from amid.teacher import signals
from amid.training.module import DistillationModule


def trained(*overrides):
    return main(["train", *overrides, "trainer.log_every_n_steps=1"])


def curve(directory):
    with (directory / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=kd", "text=teacher"], {"train/kl_pq"}),
        (["method=distillm_skl", "text.threshold=1"], {"train/text_threshold", "train/student_text_tokens"}),
        (["text=adaptive", "teacher=cached"], {"train/text_threshold", "train/gradient_weight"}),
        (["text=rollouts", "teacher=cached", "text.epochs=1"], {"train/gradient_weight"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_text_trains(quick, tmp_path, overrides, expected):
    few = {"generation.seeds": "[1]", "data.test_prompts": 1, "data.valid_prompts": 1}
    base = [o for o in quick if o.split("=")[0] not in few] + [f"{key}={value}" for key, value in few.items()]
    assert trained(*base, *overrides) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert results.load(directory).training["steps"] == 4
    assert expected <= {key for row in curve(directory) for key in row}


@pytest.mark.slow
def test_an_offloaded_teacher_waits_on_the_cpu_while_the_student_answers(
    quick, tmp_path, monkeypatch, capsys
):
    """On a machine with a single device, where it is follows from the moves that are asked for."""
    events = []

    def recording(owner, name):
        of = getattr(owner, name)

        def recorded(*given, **named):
            events.append(name)
            return of(*given, **named)

        monkeypatch.setattr(owner, name, recorded)

    monkeypatch.setattr(signals, "move", lambda model, device: events.append(f"to {device}"))
    recording(Sampling, "token_ids")
    recording(signals.LiveTeacher, "hidden")
    given = [*quick, "model.student.sft=null", "method=gkd", "text.share=1.0"]
    curves = []
    for offload in ("false", "true"):
        events.clear()
        out = tmp_path / offload
        assert trained(*given, f"teacher.offload={offload}", f"output_dir={out}") == 0
        (directory,) = out.iterdir()
        curves.append([row["train/loss"] for row in curve(directory) if "train/loss" in row])
        first = events.index("token_ids")  # of the validation before the training
        asked = [i for i, event in enumerate(events) if event == "hidden" and i > first]
        in_training = events[asked[0] : asked[-1]]
        assert in_training.count("token_ids") >= 3
        around = {
            tuple(in_training[i - 1 : i + 2]) for i, event in enumerate(in_training) if event == "token_ids"
        }
        if offload == "true":
            assert around == {("to cpu", "token_ids", "to cpu")}, "the second is the device of this machine"
        else:
            assert not any(event.startswith("to ") for event in in_training)
    assert curves[0] == curves[1]
    assert trained(*quick, "method=minillm", "teacher.offload=true") == 1
    assert "teacher.offload=true with text=rollouts: the teacher answers" in capsys.readouterr().err


@pytest.mark.slow
def test_micro_batches_change_neither_the_coin_nor_the_text(quick, tmp_path):
    curves = []
    for setting in ("data.micro_batch_size=null", "data.micro_batch_size=3"):
        out = tmp_path / setting
        given = ["method=gkd", "text.share=0.5", "trainer.max_epochs=3", "data.batch_size=8", setting]
        assert trained(*(o for o in quick if o[8:] != "max_epochs=2"), *given, f"output_dir={out}") == 0
        (directory,) = out.iterdir()
        rows = [row for row in curve(directory) if "train/loss" in row]
        curves.append(
            [[row[f"train/{key}"] for key in ("loss", "gradient_norm", "student_text")] for row in rows]
        )
    assert {row[2] for row in curves[0]} == {0.0, 1.0}
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        [
            *("method=distillm_skl", "text.threshold=0.8", "text.capacity=20", "text.tolerance=-9"),
            *("+model.student.architecture.attention_dropout=0.2", "model.student.sft=null"),
        ],
        ["method=minillm", "text.batches=3", "text.epochs=2"],
    ],
    ids=lambda overrides: overrides[0],
)
@pytest.mark.slow
def test_a_resumed_run_ends_as_a_whole_one(quick, tmp_path, jsonl, monkeypatch, capsys, method):
    base = [o for o in quick if not o.startswith("trainer.max_epochs")]
    given = [*base, *method, "trainer.max_epochs=4", "checkpoint=loss", "data.batch_size=8"]
    given += ["trainer.limit_train_batches=3", "checkpoint.every_n_steps=1"]
    plain = jsonl({"text": "Name a brave dog. " * 40})
    given.append(f"data.plain_text={plain}")
    assert trained(*given, f"output_dir={tmp_path / 'whole'}") == 0
    step = DistillationModule.training_step

    def killed(self, batches, index):
        if self.trainer.global_step == 5:
            raise KeyboardInterrupt
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", killed)
    assert trained(*given, f"output_dir={tmp_path / 'cut'}") == 130
    monkeypatch.setattr(DistillationModule, "training_step", step)
    capsys.readouterr()
    assert trained(*given, f"output_dir={tmp_path / 'cut'}") == 0
    assert "goes on after step 5 of its training\n" in capsys.readouterr().out
    (whole,), (cut,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    assert results.load(whole).scores == results.load(cut).scores
    weights = [(path / "checkpoints" / "best" / "model.safetensors").read_bytes() for path in (whole, cut)]
    assert weights[0] == weights[1]
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    steps = [row for row in curve(whole) if "train/loss" in row]
    assert [row["step"] for row in steps] == list(range(12))
    if "train/text_threshold" in steps[0]:
        assert {row["train/student_text"] for row in steps} == {0.0, 1.0}
        assert len({row["train/text_threshold"] for row in steps}) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=sft", "text=student"], "gives none; use text=data"),
        (["text=mixed", "text.share=0"], "text.share=0 must be"),
        (["text=student", "text.top_p=2"], "text.top_p=2 must be"),
        (["text=teacher", "text.temperature=-1"], "text.temperature=-1"),
        (["text=adaptive", "text.threshold=2"], "text.threshold=2 must be"),
        (["text=adaptive", "text.tolerance=nan"], "text.tolerance=nan must be a finite number"),
        (["text=adaptive", "text.capacity=0"], "text.capacity=0 must be"),
        (["method=minillm", "text=student"], "sampled with; use text=rollouts"),
        (["method=minillm", "text.teacher_share=1"], "text.teacher_share=1 must be"),
        (["method=minillm", "text.batches=0"], "text.batches=0 must be"),
        (["data.plain_text=none.txt"], "none.txt cannot be read"),
        (
            ["method=seqkd", "model.teacher.sft=null"],
            "text=teacher: a teacher of random weights is another one in each run",
        ),
    ],
)
def test_mistakes(quick, tmp_path, capsys, overrides, message):
    assert trained(*quick, *overrides) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("result.json"))
