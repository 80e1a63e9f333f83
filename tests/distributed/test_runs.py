"""Whole runs on several devices, against the same runs on one."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from amid.cli.main import main
from amid.results import load

ON_TWO = ["trainer.devices=2"]


def answers(run: Path) -> dict[str, list[str]]:
    """The texts of all answers of a run, by file."""
    files = sorted((run / "generations").rglob("*.jsonl"))
    return {
        str(file.relative_to(run)): [
            answer["text"] for line in file.read_text().splitlines() for answer in json.loads(line)["answers"]
        ]
        for file in files
    }


@pytest.mark.slow
def test_a_run_on_two_devices_is_the_run_on_one(quick, tmp_path, capfd):
    settings = [
        *quick,
        "trainer.accelerator=cpu",
        "method=gkd",
        "teacher=cached",
        "text=student",
        "generation.temperatures=[0.5,1.0]",
    ]
    one, two = (f"hydra.run.dir={tmp_path / name}" for name in ("one", "two"))
    assert main(["train", *settings, one]) == 0
    capfd.readouterr()
    assert main(["train", *settings, two, *ON_TWO]) == 0
    out = capfd.readouterr().out
    assert out.count("kept: step 4 of 4") == 1  # the first rank alone prints
    first, second = load(tmp_path / "one"), load(tmp_path / "two")
    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    assert first.config_hash == second.config_hash
    for name, value in first.training.items():
        if name.startswith(("valid", "steps", "response_tokens")) and not name.endswith("per_second"):
            assert second.training[name] == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_whole_micro_batches_give_the_same_files_to_the_bit(quick, tmp_path):
    def files(devices, *settings):
        folder = tmp_path / str(devices)
        places = [f"prepared_dir={folder / 'prepared'}", f"hydra.run.dir={folder / 'run'}"]
        shared = ["data.sharing=micro_batches", "data.micro_batch_size=8", f"trainer.devices={devices}"]
        words = [*quick, "trainer.accelerator=cpu", *settings, *shared, *places]
        subprocess.run([sys.executable, "-m", "amid", "train", *words], check=True)  # with its environment
        found = [*folder.rglob("best/*.safetensors"), *(folder / "run").glob("generations/*.jsonl")]
        found.append(folder / "run" / "metrics.csv")
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found
        }

    one, two = (files(n, "method=gkd", "text=student", "trainer.log_every_n_steps=1") for n in (1, 2))
    assert len(one) == 8  # two models that are fine-tuned, the student, four files of answers, and losses
    assert one == two


@pytest.mark.slow
def test_a_run_with_spread_weights_that_was_interrupted_goes_on_with_one_device(quick, tmp_path, capfd):
    settings = [*quick, "trainer.accelerator=cpu", "checkpoint.every_n_steps=1", "trainer.max_epochs=20"]
    settings.append("trainer.strategy=fsdp")
    one, two = (f"hydra.run.dir={tmp_path / name}" for name in ("one", "two"))
    assert main(["train", *settings, one]) == 0

    def interrupt():
        while not list((tmp_path / "two" / "checkpoints").glob("previous.ckpt")):  # written in training
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main(["train", *settings, two, *ON_TWO]) == 130
    capfd.readouterr()
    assert main(["train", *settings, two]) == 0
    assert "goes on after step" in capfd.readouterr().out
    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    first, second = (load(tmp_path / name).training for name in ("one", "two"))
    assert second["valid_loss"] == pytest.approx(first["valid_loss"], rel=1e-5)
    assert second["response_tokens"] == first["response_tokens"]


@pytest.mark.slow
def test_an_evaluation_on_two_devices_has_the_answers_and_scores_of_one(finished, tmp_path):
    given = [f"run={finished}", "trainer.accelerator=cpu", "data.test_prompts=7"]
    for name, devices in (("one", []), ("two", ON_TWO)):
        assert main(["evaluate", *given, f"hydra.run.dir={tmp_path / name}", *devices]) == 0
    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    scores = [load(tmp_path / name).scores for name in ("one", "two")]
    for dataset, by in scores[0].items():
        for metric, score in by.items():
            assert scores[1][dataset][metric].mean == pytest.approx(score.mean, abs=1e-3)
