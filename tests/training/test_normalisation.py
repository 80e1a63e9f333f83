import pytest

from amid.training.normalisation import denominators


@pytest.mark.parametrize(
    ("counted", "mean", "divided_by"),
    [
        ([3, 5], "step", [8, 8]),
        ([3, 5], "micro_batch", [6, 10]),
        ([0, 4], "micro_batch", [2, 8]),
        ([0, 0], "step", [1, 1]),
    ],
)
def test_the_loss_of_a_step_is_a_mean_over_its_tokens_or_over_its_micro_batches(counted, mean, divided_by):
    assert denominators(counted, mean) == divided_by
