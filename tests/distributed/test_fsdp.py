"""A student with its weights spread over the ranks takes the steps that one process takes."""

import shutil
from contextlib import nullcontext
from functools import partial

import lightning as L
import numpy
import pytest
import torch
from in_ranks import in_ranks
from small_models import CPU, data_of, fitted, network
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from amid.distributed import ranks
from amid.errors import InputError
from amid.losses import KL, AlphaBeta, AlphaMixture, JensenShannon, MiniLLM, Objective
from amid.models.layers import decoder_layers
from amid.models.lora import LoRA
from amid.models.source import ModelSource
from amid.settings import nodes
from amid.teacher.signals import LiveTeacher
from amid.teacher.supply import TeacherSupply
from amid.text import DataText, RolloutText, StudentText
from amid.training.checkpoints import Checkpoints, with_stored_tensors
from amid.training.devices import environment, of_trainer
from amid.training.length import Course
from amid.training.master_weights import AdamWWithMasterWeights
from amid.training.module import DistillationModule, Optimisation
from amid.training.resume import last_checkpoint, whole_state
from amid.training.trainer import Training

STEPS = 2
LORA = LoRA(r=2, dropout=0.0, target_modules="all-linear")


class Kept(AdamWWithMasterWeights):
    """AdamW that keeps the gradients of its first step, and says whether all weights are spread."""

    def __init__(self, params):
        super().__init__(params, lr=1e-3, eps=1e-3)
        Kept.gradients = None

    def step(self, closure=None):
        if Kept.gradients is None:
            weights = [weight for group in self.param_groups for weight in group["params"]]
            Kept.spread = all(isinstance(weight, DTensor) for weight in weights)
            Kept.gradients = torch.cat([whole(weight.grad).float().flatten() for weight in weights]).numpy()
        return super().step(closure)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trainer(strategy="fsdp"):
    """The arguments of Lightning's trainer on the ranks of this run."""
    settings = {"max_epochs": -1, "max_steps": -1, "accelerator": "cpu", "devices": ranks.number()}
    steps = {"log_every_n_steps": 1, "check_val_every_n_epoch": 1, "precision": "32-true"}
    given = nodes.Trainer(**settings, **steps, strategy=strategy)
    return of_trainer(given) | {"plugins": [environment()]}


def cached(data, folder):
    """A teacher whose states are stored, with its model in `folder`."""
    supply = TeacherSupply("cached", cache_dir=str(data.cache_dir), multirun=True)
    return supply.teacher(ModelSource(str(folder)), data.tokenizer, [data.train_tokens], passes=1.0, **CPU)


CASES = {
    "tied": {"objective": Objective(KL(), AlphaMixture(-5.0, 0.1))},
    "untied": {"objective": Objective(AlphaBeta(), AlphaMixture(0.0, 0.3), order="qr"), "tied": False},
    "logits": {"objective": Objective(JensenShannon(0.5), fused=False), "packing": True},
    "lora": {"objective": Objective(KL()), "checkpointing": True, "lora": LORA},
    "bfloat16": {"objective": Objective(KL()), "lora": LORA, "dtype": torch.bfloat16},
    "autocast": {"objective": Objective(KL()), "precision": "bf16-mixed"},
    "cached": {"objective": Objective(KL()), "cached": True},
    "student": {"objective": Objective(KL()), "text": StudentText},
    "rollouts": {"objective": MiniLLM(), "text": partial(RolloutText, rows_per_step=7, batches=1)},
}


def step(
    tmp_path,
    objective,
    tied=True,
    lora=None,
    checkpointing=False,
    cached_teacher=False,
    text=None,
    packing=False,
    dtype=torch.float32,
    precision="32-true",
):
    """The gradients of the first step, the weights after some, and the loss of the last."""
    # One row a micro-batch, not packed: ranks have different numbers of them.
    given = {"batch_size": 7, "micro_batch_size": 1 + packing, "valid_metric": None, "packing": packing}
    data = data_of(tmp_path, size=13, **given)
    first = ranks.is_first()
    with nullcontext() if first else torch.device("meta"):  # the other ranks get their parts from it
        student = network(tie_word_embeddings=tied, num_hidden_layers=2)
        if checkpointing:
            source = ModelSource(str(tmp_path / "student"), gradient_checkpointing=True)
            student = source.load(data.tokenizer, values=first)
        student.to(dtype)
        if lora is not None:
            lora.add_to(student)
    teacher = cached(data, tmp_path / "teacher") if cached_teacher else None
    of_text = DataText() if text is None else text(max_new_tokens=8)
    given = {"objective": objective, "steps": STEPS, "optimizer": Kept, "trainer": trainer()}
    given["precision"] = precision
    module, logged = fitted(data, of_text, student, teacher, **given)
    assert Kept.spread == (ranks.number() > 1)
    module.gather()
    weights = [weight.detach().float().flatten() for weight in module.student.parameters()]
    return Kept.gradients, torch.cat(weights).numpy(), logged["train/loss"]


def steps_of_all(tmp_path, cases):
    found = {}
    for name in cases:
        given = dict(CASES[name])
        found[name] = step(tmp_path, cached_teacher=given.pop("cached", False), **given)
    return found


def apart(found, expected):
    return numpy.linalg.norm(found - expected) / numpy.linalg.norm(expected)


QUICK = ["tied", "logits", "lora", "autocast", "cached", "student"]


@pytest.mark.parametrize(
    ("n", "cases"),
    [
        (2, QUICK),
        pytest.param(2, [case for case in CASES if case not in QUICK], marks=pytest.mark.slow),
        pytest.param(4, ["tied"], marks=pytest.mark.slow),
    ],
)
def test_steps_of_several_ranks_are_those_of_one(tmp_path, n, cases):
    network(seed=5).save_pretrained(tmp_path / "teacher")
    network(num_hidden_layers=2).save_pretrained(tmp_path / "student")
    alone = steps_of_all(tmp_path, cases)
    first, *others = in_ranks(n, steps_of_all, tmp_path, cases)
    for name in cases:
        (gradients, weights, loss), expected = first[name], alone[name]
        assert apart(gradients, expected[0]) <= 1e-6, name
        assert apart(weights, expected[1]) <= 1e-6, name
        assert loss == pytest.approx(expected[2], rel=1e-5), name
        for other in others:
            assert (other[name][1] == weights).all(), name


class Stop(L.Callback):
    """Ends a training before its step `at`, counted from 0."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, *given):
        if trainer.global_step == self.at:
            raise InterruptedError


def trained(tmp_path, folder, stop=None, dtype=torch.float32):
    """The weights that a training of four steps keeps; None where it stops before a step."""
    data = data_of(tmp_path, size=13, batch_size=7, micro_batch_size=2, valid_metric=None)
    module = DistillationModule(
        student=network(num_hidden_layers=2, tie_word_embeddings=True).to(dtype),
        teacher=LiveTeacher(network(seed=5)),
        objective=Objective(KL()),
        data=data,
        text=DataText(),
        optimisation=Optimisation(Kept, partial(LambdaLR, lr_lambda=lambda step: 1.0), 1.0, steps=4),
    )
    course, checkpoints = (
        Course(4, of_epoch=2, epochs_to_validation=1),
        Checkpoints("valid/loss", every_n_steps=1),
    )
    given = {name: value for name, value in trainer().items() if name != "plugins"}
    lightning = partial(L.Trainer, accelerator="cpu", enable_model_summary=False, **given)
    training = Training(course, checkpoints, [] if stop is None else [Stop(stop)], lightning)
    try:
        training.fit(module, data, folder, [], last_checkpoint(folder))
    except InterruptedError:
        return None
    return torch.cat([weight.detach().float().flatten() for weight in module.student.parameters()]).numpy()


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_ranks(tmp_path):
    alone = trained(tmp_path, tmp_path / "alone")
    spread = in_ranks(2, trained, tmp_path, tmp_path / "fewer", 3)
    assert spread == [None, None]
    assert whole_state(last_checkpoint(tmp_path / "fewer"))["global_step"] == 3
    shutil.copytree(tmp_path / "fewer", tmp_path / "others")
    assert apart(trained(tmp_path, tmp_path / "fewer"), alone) <= 1e-6
    (part, *_) = (tmp_path / "others" / "checkpoints").glob("last.ckpt.*/*.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    for weights in in_ranks(3, trained, tmp_path, tmp_path / "others"):  # from the checkpoint before
        assert apart(weights, alone) <= 1e-6
    assert not list((tmp_path / "fewer" / "checkpoints").glob("*.ckpt.*"))  # no checkpoint names them now
    assert trained(tmp_path, tmp_path / "more", 1) is None
    for weights in in_ranks(2, trained, tmp_path, tmp_path / "more"):
        assert apart(weights, alone) <= 1e-6


@pytest.mark.slow
def test_master_weights_are_spread_and_go_on_with_one_rank(tmp_path):
    alone = trained(tmp_path, tmp_path / "alone", dtype=torch.bfloat16)
    assert in_ranks(2, trained, tmp_path, tmp_path / "spread", 3, torch.bfloat16) == [None, None]
    file = last_checkpoint(tmp_path / "spread")
    content = with_stored_tensors(whole_state(file), whole_state(file), file)
    masters = [state["master"] for state in content["optimizer_states"][0]["state"].values()]
    weights = list(content["state_dict"].values())
    assert len(masters) > 10
    assert all(any(torch.equal(master.bfloat16(), weight) for weight in weights) for master in masters)
    assert not any(torch.equal(master, master.bfloat16().float()) for master in masters if master.dim() > 1)
    start = network(num_hidden_layers=2, tie_word_embeddings=True).parameters()
    before = torch.cat([weight.detach().bfloat16().float().flatten() for weight in start]).numpy()
    resumed = trained(tmp_path, tmp_path / "spread", dtype=torch.bfloat16)
    assert apart(resumed - before, alone - before) < 0.1


def test_a_model_without_layers_that_are_found_is_named():
    model = network()
    model.config.num_hidden_layers = 7
    with pytest.raises(InputError, match="decoder layers of LlamaForCausalLM were not found; use"):
        decoder_layers(model)
