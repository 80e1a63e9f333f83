"""The progress of a run on the screen: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
import transformers
from huggingface_hub.utils.tqdm import enable_progress_bars
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

from amid.console import announce
from amid.measures import TRAINING, VALIDATION, Measure, measure_of
from amid.tracking.status import due, record_status

SECONDS_BETWEEN_LINES = 3.0
"""The least time from the beginning of a computation to its first line, and from one line to the next."""


def silence_bars() -> None:
    """Silences the progress bars of transformers. On a terminal, the bars of downloads from the hub stay."""
    transformers.utils.logging.disable_progress_bar()  # the hub's too
    if sys.stderr.isatty():
        enable_progress_bars()


def progress(steps: int) -> Callback:
    """A progress bar with loss, validation score and time left; lines where the output is no terminal.

    Args:
        steps: the optimiser steps of the whole training.
    """
    return ProgressBar(leave=False) if sys.stdout.isatty() else ProgressLines(steps)


class ProgressBar(RichProgressBar):
    """A bar with step, time left, loss and the last validation score, such as ROUGE-L."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The figures behind the bar, by short names."""
        metrics = super().get_metrics(trainer, pl_module)
        shown = {"loss": metrics["train/loss"]} if "train/loss" in metrics else {}
        return shown | {measure.title: metrics[measure.logged] for measure in _validation_scores(metrics)}


class _Watch(Callback):
    """Knows the mean loss of the last tenth of the steps, and the time left.

    Args:
        steps: the optimiser steps of the whole training.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._losses: deque[Tensor] = deque(maxlen=max(1, steps // 10))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._started, self._first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes note of the loss, without waiting for a GPU to compute it."""
        self._losses.append(outputs["loss"].detach())

    @property
    def _loss(self) -> float:
        return float(torch.stack(list(self._losses)).mean())

    def _seconds_left(self, step: int) -> float:
        return (time.perf_counter() - self._started) / (step - self._first) * (self._steps - step)


class ProgressLines(_Watch):
    """Prints step, mean loss and validation score since the last line, and time left, about ten times."""

    _validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The next line has a new score to print."""
        self._validated = True

    def _scores(self, trainer: L.Trainer) -> str:
        if not self._validated:
            return ""
        self._validated = False
        metrics = trainer.callback_metrics
        return "".join(
            f"  valid {measure.title} {measure.number(float(metrics[measure.logged]))}"
            for measure in _validation_scores(metrics)
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line after each tenth of the steps."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        total, step = self._steps, trainer.global_step
        if step % max(1, total // 10) and step != total:
            return
        scores = self._scores(trainer) if step != total else ""  # the last step's validation is to come
        left = f"{self._seconds_left(step):.0f} s left"
        loss = TRAINING["loss"].number(self._loss)
        announce(f"  step {step}/{total}  loss {loss}{scores}  {left}")


class StatusRecords(_Watch):
    """Keeps a run's status on disk in training: step, loss, the last validation score and time left."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        record_status(step=trainer.global_step, steps=self._steps, note="training")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes, where the last record is some seconds old or the step is the last."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step = trainer.global_step
        if due() or step == self._steps:
            record_status(
                step=step, loss=self._loss, seconds_left=self._seconds_left(step), **self._score(trainer)
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the last score."""
        record_status(seconds_left=None, **self._score(trainer))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Writes the step at which the training was cut."""
        if self._losses:
            record_status(step=trainer.global_step, loss=self._loss, seconds_left=None)

    def _score(self, trainer: L.Trainer) -> dict[str, Any]:
        metrics = trainer.callback_metrics
        for measure in _validation_scores(metrics):
            return {"metric": measure.name, "score": float(metrics[measure.logged])}
        return {}


def _validation_scores(metrics: Iterable[str]) -> list[Measure]:
    """Returns the measures that score validation answers, among the names of logged metrics."""
    names = [key.removeprefix("valid/") for key in metrics if key.startswith("valid/")]
    return [measure_of(name) for name in names if name not in VALIDATION and not name.endswith("_best")]


class Progress:
    """Shows the progress of a computation over `total` tokens.

    On a terminal it shows a bar, elsewhere at most ten lines, and nothing for a computation that is done at
    once. The status of the run has the progress too.

    Args:
        what: names what is computed.
        total: the tokens of the whole computation.
        unit: names what is counted, if not tokens.
    """

    def __init__(self, what: str, total: int, unit: str = "tokens") -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._started = self._told = time.perf_counter()
        self._bar: RichProgress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, transient=True)
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> "Progress":
        record_status(part=self.what, done=0, total=self.total)
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        record_status(part="", done=0, total=None, seconds_left=None)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._started

    @property
    def rate(self) -> float:
        """Tokens per second, or whatever unit is counted."""
        return self.done / self.seconds

    @property
    def seconds_left(self) -> float:
        """Seconds left at the present rate; known after the first tokens."""
        return (self.total - self.done) / self.rate

    def advance(self, tokens: int) -> None:
        """Counts so many further tokens as done."""
        before, self.done = self.done, min(self.total, self.done + tokens)
        silent = time.perf_counter() - self._told >= SECONDS_BETWEEN_LINES
        if self._bar is not None:
            self._bar.advance(self._task, tokens)
        elif before * 10 // self.total < self.done * 10 // self.total and silent:
            self._told = time.perf_counter()
            share = 100 * self.done // self.total
            rate = f"{self.rate:,.0f} {self.unit}/s"
            announce(f"  {self.what} {share}%  {rate}  {self.seconds_left:.0f} s left")
        if self.done and due():
            record_status(done=self.done, seconds_left=self.seconds_left)
