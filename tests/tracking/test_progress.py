import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import transformers
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from torch import tensor

from amid.tracking.progress import (
    Progress,
    ProgressBar,
    ProgressLines,
    progress,
    silence_bars,
)


def test_lines_where_the_output_is_no_terminal(capsys):
    lines = progress(20)
    assert isinstance(lines, ProgressLines)
    trainer = SimpleNamespace(
        global_step=0,
        callback_metrics={"valid/rouge_l": 30.0},
    )
    lines.on_train_start(trainer, None)
    for trainer.global_step in range(1, 21):
        lines.on_train_batch_end(trainer, None, {"loss": tensor(1 + (trainer.global_step % 2) / 2)}, None, 0)
        if trainer.global_step % 5 == 0:
            lines.on_validation_end(trainer, None)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 10
    assert all("  loss 1.250  " in line for line in out)
    assert [n for n, line in enumerate(out) if "  valid ROUGE-L 30.0  " in line] == [2, 5, 7]  # once each
    assert out[8].startswith("  step 18/20  ")
    assert out[9] == "  step 20/20  loss 1.250  0 s left"


def test_the_score_is_that_of_the_task(capsys):
    trainer = SimpleNamespace(global_step=0)
    trainer.callback_metrics = {
        "valid/loss": 1.0,
        "valid/kl_pq": 0.1,
        "valid/bleu": 20.0,
        "valid/bleu_best": 25.0,
    }
    lines = ProgressLines(2)
    lines.on_train_start(trainer, None)
    lines.on_validation_end(trainer, None)
    trainer.global_step = 1
    lines.on_train_batch_end(trainer, None, {"loss": tensor(1.25)}, None, 0)
    assert capsys.readouterr().out.startswith("  step 1/2  loss 1.250  valid BLEU 20.0  ")


@pytest.mark.slow
def test_a_job_without_a_terminal_prints_lines_and_no_control_characters(small_run):
    """As under SLURM, whose log is a file."""
    command = [sys.executable, "-m", "amid", "train", *small_run, "teacher=cached"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TERM": "xterm-256color"}
    )
    assert done.returncode == 0, done.stderr
    assert not {"\r", "\x1b", "━", "█"} & set(done.stdout + done.stderr)
    lines = done.stdout.splitlines()
    assert sum(line.startswith("  step ") for line in lines) == 3 * 4  # teacher, student, run
    kept = [
        line
        for line in lines
        if re.fullmatch(
            r"  kept: step \d of \d, valid cross-entropy [\d.]+ \(before [\d.]+\)"
            r"(, ROUGE-L [\d.]+ \(before [\d.]+\))?",
            line,
        )
    ]
    assert ["ROUGE-L" in line for line in kept] == [False, False, True], "fine-tunings draw no answers"
    assert not [line for line in lines if "%" in line], lines  # of what is done at once


def test_a_long_computation_tells_how_far_it_is(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("amid.tracking.progress.time", clock)
    with Progress("answers", 100, unit="answers") as told:
        for clock.now in (1.0, 2.0, 3.0, 4.0, 40.0):
            told.advance(20)
    assert capsys.readouterr().out.splitlines() == [
        "  answers 60%  20 answers/s  2 s left",
        "  answers 100%  2 answers/s  0 s left",
    ]


def test_the_bar_shows_loss_and_rouge_by_short_names(monkeypatch):
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.RichProgressBar.get_metrics",
        lambda *_: {"train/loss": 0.5, "valid/rouge_l": 40.0, "v_num": 3},
    )
    assert ProgressBar().get_metrics(None, None) == {"loss": 0.5, "ROUGE-L": 40.0}


@pytest.mark.parametrize("terminal", [True, False])
def test_only_downloads_have_bars_and_those_on_a_terminal_alone(terminal, monkeypatch):
    were_off = are_progress_bars_disabled()
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal))
    silence_bars()
    off = are_progress_bars_disabled()
    (disable_progress_bars if were_off else enable_progress_bars)()
    assert off is not terminal
    assert not transformers.utils.logging.is_progress_bar_enabled()
