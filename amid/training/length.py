"""How long a training is, and where it is validated."""

import math
from dataclasses import dataclass

from amid.errors import InputError

MOST_VALIDATIONS = 50
"""The most validations in a training, without the one before its first step. With more epochs, a validation
follows only every k-th epoch."""


@dataclass(frozen=True)
class Course:
    """The steps, epochs and validations of a training."""

    steps: int
    """Optimiser steps of the whole training."""
    of_epoch: int
    """Steps of an epoch."""
    epochs_to_validation: int
    """Epochs between two validations. A validation also follows the last, perhaps shorter, epoch."""

    @property
    def epochs(self) -> int:
        """The number of epochs of the training; the last epoch may be cut."""
        return math.ceil(self.steps / self.of_epoch)

    def validates_at(self, step: int) -> bool:
        """Whether a validation follows the first `step` steps."""
        epoch, rest = divmod(step - 1, self.of_epoch)
        ends = rest + 1 == self.of_epoch or step == self.steps
        return step > 0 and ends and (epoch + 1) % self.epochs_to_validation == 0

    def place(self, step: int) -> tuple[int, int]:
        """The epochs that `step` steps complete, and the further steps; the last epoch may be cut."""
        return (-(-step // self.of_epoch), 0) if step == self.steps else divmod(step, self.of_epoch)


@dataclass(frozen=True)
class Length:
    """The settings of a trainer that say how long it trains.

    Args:
        max_epochs: passes over the training data; -1 for no limit.
        max_steps: optimiser steps; -1 for no limit.
        check_val_every_n_epoch: epochs between two validations, at least.
        limit_train_batches: steps of an epoch, or its share of the data's; None for all.
        key: the key of the settings.
    """

    max_epochs: int
    max_steps: int
    check_val_every_n_epoch: int = 1
    limit_train_batches: int | float | None = None
    key: str = "trainer"

    def over(self, steps_of_all: int) -> Course:
        """The course of a training that needs `steps_of_all` steps to go over its data once.

        Raises:
            InputError: for a share of the data that is less than one step.
        """
        of_epoch = self._steps_of_epoch(steps_of_all)
        steps = min(n for n in (self.max_epochs * of_epoch, self.max_steps) if n >= 0)
        of_epoch = max(1, of_epoch)
        epochs = math.ceil(steps / of_epoch)
        every = max(self.check_val_every_n_epoch, math.ceil(epochs / MOST_VALIDATIONS))
        return Course(steps, of_epoch, every)

    def in_words(self, course: Course) -> str:
        """The steps and epochs of a training, and the setting that gives them."""
        epochs = f"{course.steps / course.of_epoch:,.2f}".rstrip("0").rstrip(".")
        name = "max_steps" if course.steps == self.max_steps else "max_epochs"
        return (
            f"{_count(f'{course.steps:,}', 'step')} ({_count(epochs, 'epoch')} of {course.of_epoch:,}); "
            f"{self.key}.{name} sets this"
        )

    def _steps_of_epoch(self, steps_of_all: int) -> int:
        limit = self.limit_train_batches
        if limit is None:
            return steps_of_all
        if not isinstance(limit, float):
            return min(limit, steps_of_all)
        steps = int(limit * steps_of_all)  # as Lightning rounds
        if limit > 0 and steps == 0 < steps_of_all:
            raise InputError(
                f"{self.key}.limit_train_batches={limit} of the {steps_of_all} steps of an epoch is not one "
                "step; give a larger share, or a whole number of steps"
            )
        return steps


def _count(number: str, what: str) -> str:
    return f"{number} {what}" if number == "1" else f"{number} {what}s"
