"""Callbacks in a training: what is scored and kept with them, also over a resume."""

from fractions import Fraction
from functools import partial
from typing import ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from small_models import data_of, network
from torch.optim.lr_scheduler import LambdaLR

from amid.errors import InputError
from amid.losses import KL, Objective
from amid.teacher.signals import LiveTeacher
from amid.text import DataText
from amid.training.averaging import AverageWeights
from amid.training.checkpoints import Checkpoints
from amid.training.length import Course
from amid.training.module import DistillationModule, Optimisation
from amid.training.resume import last_checkpoint
from amid.training.trainer import Training

DECAY, STEPS = 0.6, 6
EPOCH = 2
"""Steps of an epoch, each of which ends with a validation. With shorter epochs, not every epoch does."""


class Scored:
    """A score of a validation that keeps the weights of the student that it scores."""

    name = "rouge_l"

    def __init__(self):
        self.weights = []

    def __call__(self, student, tokenizer):
        self.weights.append([weight.detach().clone() for weight in student.parameters()])
        return float(len(self.weights))


class Killed(L.Callback):
    """Ends the process, as it were, in a hook after `step` steps; keeps the weights of all steps."""

    def __init__(self, hook=None, step=None):
        self.weights = []
        if hook is not None:
            setattr(self, hook, partial(self.end, step))

    def end(self, step, trainer, *_):
        if trainer.global_step == step and trainer.state.fn == "fit":
            raise InterruptedError

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append([weight.detach().clone() for weight in pl_module.student.parameters()])


def trained(tmp_path, folder, *callbacks, monitor="valid/loss", score=None, epoch=EPOCH):
    """The module after a training in `folder`, which goes on if it was begun there; None if it is killed."""
    data = data_of(tmp_path, size=13, batch_size=7, micro_batch_size=7, valid_metric=None)
    module = DistillationModule(
        student=network(hidden_size=8),
        teacher=LiveTeacher(network(seed=5)),
        objective=Objective(KL()),
        data=data,
        text=DataText(),
        optimisation=Optimisation(
            partial(torch.optim.AdamW, lr=0.05), partial(LambdaLR, lr_lambda=lambda step: 1.0), 1.0, STEPS
        ),
        valid_score=score,
    )
    lightning = partial(
        L.Trainer, accelerator="cpu", devices=1, enable_model_summary=False, num_sanity_val_steps=0
    )
    mode = "max" if monitor == "valid/rouge_l" else "min"
    checkpoints = Checkpoints(monitor, mode, every_n_steps=1)
    course = Course(STEPS, epoch, epochs_to_validation=EPOCH // epoch)
    training = Training(course, checkpoints, callbacks, partial(lightning, limit_train_batches=epoch))
    try:
        training.fit(module, data, folder, [], last_checkpoint(folder))
    except InterruptedError:
        return None
    return module


def equal(found, expected):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def averages(weights):
    """The averages after each step."""
    found = weights[:1]
    for later in weights[1:]:
        found.append(
            [torch.lerp(average, weight, 1 - DECAY) for average, weight in zip(found[-1], later, strict=True)]
        )
    return found


def test_the_average_is_scored_and_kept_and_the_training_goes_on_without_it(tmp_path):
    seen, scored = Killed(), Scored()
    module = trained(
        tmp_path, tmp_path / "a", AverageWeights(DECAY), seen, score=scored, monitor="valid/rouge_l"
    )
    plain = Killed()
    trained(tmp_path, tmp_path / "b", plain)
    assert all(map(equal, seen.weights, plain.weights)), "the average does not change the steps"
    expected = averages(seen.weights)
    assert equal(scored.weights[1], expected[1])
    assert equal(scored.weights[2], expected[3])
    assert equal(module.student.parameters(), expected[5])
    assert not equal(expected[5], seen.weights[5])


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_start", 1),
        ("on_train_batch_start", 3),
        ("on_validation_batch_start", 4),  # while the student has the average
        ("on_train_epoch_end", 4),  # after the best student was kept
        ("on_train_end", 6),
    ],
)
def test_a_resumed_training_with_callbacks_equals_an_undisturbed_one(tmp_path, hook, step):
    def callbacks():
        return AverageWeights(DECAY), EarlyStopping("valid/loss", patience=2, check_on_train_epoch_end=False)

    whole, parts = callbacks(), callbacks()
    expected = trained(tmp_path, tmp_path / "whole", *whole)
    assert trained(tmp_path, tmp_path / "cut", *callbacks(), Killed(hook, step)) is None
    module = trained(tmp_path, tmp_path / "cut", *parts)
    assert equal(module.student.parameters(), expected.student.parameters())
    assert module.validation == expected.validation
    assert parts[1].state_dict() == whole[1].state_dict()
    assert equal(parts[0]._average, whole[0]._average)


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH // 2])
@pytest.mark.parametrize("hook", [None, "on_validation_batch_start", "on_train_epoch_end"])
def test_early_stopping_ends_a_training_also_a_resumed_one(tmp_path, hook, epoch):
    """With the shorter epoch the best student is kept before the epoch's end."""

    def stopping():
        return EarlyStopping("valid/loss", stopping_threshold=1e9, check_on_train_epoch_end=False)

    if hook is not None:
        assert trained(tmp_path, tmp_path / "run", stopping(), Killed(hook, EPOCH), epoch=epoch) is None
    seen = Killed()
    module = trained(tmp_path, tmp_path / "run", stopping(), seen, epoch=epoch)
    assert len(seen.weights) == (EPOCH if hook is None else 0), "no step follows the validation"
    assert module.validated_step == EPOCH


def test_a_state_that_becomes_unreadable_leaves_the_state_before_it(tmp_path):
    """A run goes on from there once the callback is mended."""

    class Mine(L.Callback):
        seen: ClassVar[list] = []

        def on_train_batch_end(self, trainer, *_):
            self.seen.append(Fraction(trainer.global_step))

        def state_dict(self):
            return {"seen": list(self.seen)}

    folder = tmp_path / "run"
    with pytest.raises(InputError, match="the state of the callback Mine could not be read in a resumed run"):
        trained(tmp_path, folder, Mine())
    Mine.state_dict = lambda self: {"seen": len(self.seen)}
    seen = Killed()
    assert trained(tmp_path, folder, Mine(), seen) is not None
    assert seen.weights


def test_a_state_that_could_not_be_read_again_is_refused_before_the_first_step(tmp_path):
    class Mine(L.Callback):
        def state_dict(self):
            return {"share": Fraction(1, 3)}

    seen = Killed()
    with pytest.raises(
        InputError, match=r"the state of the callback Mine could not be read in a resumed run \(.*\); let"
    ):
        trained(tmp_path, tmp_path / "run", Mine(), seen)
    assert not seen.weights
