"""How long a training is, and how often it is validated."""

import math

import pytest

from amid.errors import InputError
from amid.training.length import MOST_VALIDATIONS, Course, Length


@pytest.mark.parametrize("epochs", [1, 49, 50, 51, 99, 100, 101, 149, 1000])
def test_validations_are_as_many_as_there_may_be(epochs):
    every = Length(epochs, -1).over(3).epochs_to_validation
    assert math.ceil(epochs / every) <= MOST_VALIDATIONS
    assert every == 1 or math.ceil(epochs / (every - 1)) > MOST_VALIDATIONS
    assert Length(epochs, -1, check_val_every_n_epoch=7).over(3).epochs_to_validation == max(7, every)


@pytest.mark.parametrize(
    ("length", "course", "words"),
    [
        (Length(2, -1), Course(20, 10, 1), "20 steps (2 epochs of 10); trainer.max_epochs sets this"),
        (Length(-1, 25), Course(25, 10, 1), "25 steps (2.5 epochs of 10); trainer.max_steps sets this"),
        (Length(1, 25, 1, 0.11), Course(1, 1, 1), "1 step (1 epoch of 1); trainer.max_epochs sets this"),
        (
            Length(3, -1, 2, 99, "a.b"),
            Course(30, 10, 2),
            "30 steps (3 epochs of 10); a.b.max_epochs sets this",
        ),
        (Length(0, -1), Course(0, 10, 1), "0 steps (0 epochs of 10); trainer.max_epochs sets this"),
    ],
)
def test_a_training_ends_at_the_first_of_its_limits(length, course, words):
    assert length.over(10) == course
    assert length.in_words(course) == words


def test_epochs_count_the_cut_one():
    assert (Course(25, 10, 1).epochs, Course(0, 10, 1).epochs) == (3, 0)


def test_a_share_of_less_than_a_step_is_refused():
    with pytest.raises(InputError, match=r"a\.limit_train_batches=0.09 of the 10 steps of an epoch"):
        Length(1, -1, limit_train_batches=0.09, key="a").over(10)
