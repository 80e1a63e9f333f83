"""How long a training is, and what is kept of it."""

import math

import pytest
from lightning.pytorch.callbacks import Timer

from amid.errors import InputError
from amid.training.trainer import MOST_VALIDATIONS, epochs_of_validation, own_callbacks


@pytest.mark.parametrize("epochs", [1, 49, 50, 51, 99, 100, 101, 149, 1000])
def test_validations_are_as_many_as_there_may_be(epochs):
    every = epochs_of_validation({"check_val_every_n_epoch": 1}, epochs)
    assert math.ceil(epochs / every) <= MOST_VALIDATIONS
    assert every == 1 or math.ceil(epochs / (every - 1)) > MOST_VALIDATIONS
    assert epochs_of_validation({"check_val_every_n_epoch": 7}, epochs) == max(7, every)


def test_a_callback_of_one_s_own_is_one_of_lightning():
    (made,) = own_callbacks({"callbacks": {"mine": {"_target_": "lightning.pytorch.callbacks.Timer"}}})
    assert isinstance(made, Timer)
    with pytest.raises(
        InputError, match=r"callbacks.mine is a Fraction; it must be a lightning.pytorch.Callback"
    ):
        own_callbacks({"callbacks": {"mine": {"_target_": "fractions.Fraction"}}})
