"""Averages of the student's weights: what is averaged, validated and kept, also over a resume."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from small_models import data_of, fitted, network

from amid.errors import InputError
from amid.text import DataText
from amid.training.averaging import AverageWeights

STEPS = 6


class Seen(L.Callback):
    """Keeps the student's weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append([w.detach().double().clone() for w in pl_module.student.parameters()])


def averaged(tmp_path, callback, student=None, steps=STEPS, **given):
    seen = Seen()
    module, _ = fitted(
        data_of(tmp_path),
        DataText(),
        student or network(seed=1),
        steps=steps,
        trainer={"callbacks": [seen, callback]},
        **given,
    )
    return [w.detach() for w in module.student.parameters()], seen.weights


def assert_near(found, expected, **tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


def test_an_exponential_average_is_that_of_its_formula(tmp_path):
    found, weights = averaged(tmp_path, AverageWeights(decay=0.7))
    expected = weights[0]
    for later in weights[1:]:
        expected = [0.7 * average + 0.3 * weight for average, weight in zip(expected, later, strict=True)]
    assert_near(found, expected)


def test_it_equals_the_average_of_lightning(tmp_path):
    found, _ = averaged(tmp_path, AverageWeights(decay=0.9))
    theirs, _ = averaged(tmp_path, EMAWeightAveraging(decay=0.9))
    assert_near(found, [weight.double() for weight in theirs], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("start", "first"), [(0, 0), (4, 4), (0.5, 3)])
def test_without_a_decay_it_is_the_mean_of_the_steps_from_its_start_on(tmp_path, start, first):
    found, weights = averaged(tmp_path, AverageWeights(decay=None, start=start))
    assert_near(found, [torch.stack(of_steps).mean(0) for of_steps in zip(*weights[first:], strict=True)])


@pytest.mark.parametrize("start", [STEPS, 100])
def test_a_start_that_leaves_no_step_is_refused(tmp_path, start):
    with pytest.raises(InputError, match=f"AverageWeights start={start} .* leaves none of the {STEPS} steps"):
        averaged(tmp_path, AverageWeights(start=start))


def test_an_average_of_bfloat16_weights_moves_by_less_than_they_can(tmp_path):
    student = network(seed=1).to(torch.bfloat16)
    callback = AverageWeights(decay=0.999)
    _, weights = averaged(tmp_path, callback, student, teacher=None)
    expected = weights[0]
    for later in weights[1:]:
        expected = [0.999 * average + 0.001 * weight for average, weight in zip(expected, later, strict=True)]
    assert_near(callback._average, expected, rtol=1e-6, atol=1e-8)
    assert any((ours != first).any() for ours, first in zip(callback._average, weights[0], strict=True))


def test_frozen_weights_have_no_average(tmp_path):
    student = network(seed=1)
    student.model.embed_tokens.requires_grad_(False)
    callback = AverageWeights(decay=0.5)
    averaged(tmp_path, callback, student)
    assert len(callback._average) == len(list(student.parameters())) - 1


def test_a_checkpoint_holds_the_average_under_both_names_of_a_tied_weight(tmp_path):
    student = network(seed=1, tie_word_embeddings=True)
    callback, trained = AverageWeights(decay=0.5), []

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "third.ckpt")
                trained.extend(w.detach().clone() for w in pl_module.student.parameters())

    fitted(data_of(tmp_path), DataText(), student, steps=4, trainer={"callbacks": [callback, Save()]})
    kept = torch.load(tmp_path / "third.ckpt", weights_only=True)
    state = kept["state_dict"]
    assert torch.equal(state["student.lm_head.weight"], state["student.model.embed_tokens.weight"])
    assert not torch.equal(state["student.lm_head.weight"], trained[0]), "it is the average"
    for latest, weight in zip(kept["weight_average"]["latest"], trained, strict=True):
        assert torch.equal(latest, weight)


class Ended(torch.nn.Module):
    steps = STEPS

    def __init__(self, device="cpu"):
        super().__init__()
        self.student = torch.nn.Linear(2, 1, bias=False, device=device)


@pytest.mark.parametrize("ended", [True, False])
def test_the_student_of_an_ended_training_keeps_its_average(ended):
    module, average, latest = Ended(), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    with torch.no_grad():
        module.student.weight.copy_(average)  # as the checkpoint's weights are
    kept = {"steps": 3, "average": [average], "latest": [latest]}
    AverageWeights().on_load_checkpoint(None, module, {"weight_average": kept, "ended": ended})
    assert torch.equal(module.student.weight, average if ended else latest)


def test_an_average_of_a_checkpoint_follows_the_student_to_its_device():
    kept = {"steps": 3, "average": [torch.ones(1, 2)], "latest": [torch.ones(1, 2)]}
    callback = AverageWeights()
    callback.on_load_checkpoint(None, Ended(), {"weight_average": kept, "ended": False})
    callback.on_train_start(None, Ended(device="meta"))
    assert [weight.device.type for weight in callback._average] == ["meta"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decay": 1.0}, "AverageWeights decay=1.0 must be a number from 0 and below 1, or null"),
        ({"start": -1}, "AverageWeights start=-1 must be a whole number of steps, or a share"),
    ],
)
def test_values_outside_their_range(given, message):
    with pytest.raises(InputError, match=message):
        AverageWeights(**given)
