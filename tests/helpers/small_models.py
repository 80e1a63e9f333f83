"""Shared parts of the tests of texts: small models, data, and a module after some steps."""

import multiprocessing

import lightning as L
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from amid.data import InstructionData
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.data.templates import Template
from amid.losses import KL, Objective
from amid.teacher.signals import LiveTeacher
from amid.training.module import DistillationModule, Optimisation

FORK = multiprocessing.get_context("fork")
TOKENS = tokenizer()
EOS = TOKENS.eos_token_id
CPU = {"fabric": L.Fabric(accelerator="cpu", devices=1), "precision": "32-true"}


def network(seed=0, eos_bias=0.0, **fields):
    """A small model of random weights; `eos_bias` is added to the logit of EOS."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=1024, initializer_range=0.3, **(sizes | fields))
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig()

    def more_eos(module, inputs, logits):
        logits[..., EOS] += eos_bias
        return logits

    if eos_bias:
        model.lm_head.register_forward_hook(more_eos)
    return model


def data_of(tmp_path, size=60, pad=None, **given):
    tokens = tokenizer()
    if pad is not None:
        tokens.pad_token = pad
    return InstructionData(
        tokenizer=tokens,
        train=corpus("train", size=size),
        valid=corpus("valid", size=6),
        test={},
        template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        max_prompt_length=32,
        max_length=60,
        cache_dir=str(tmp_path / "cache"),
        **{"batch_size": 8, "micro_batch_size": 3, "seed": 1, **given},
    )


def fitted(data, which, student, teacher=None, objective=None, steps=1, lr=0.1, trainer=None, **given):
    """A module after some steps of gradient descent; `trainer` has more arguments for Lightning's trainer."""
    which.begin(data.train_tokens)
    module = DistillationModule(
        student=student,
        teacher=teacher or LiveTeacher(network(seed=5)),
        objective=objective or Objective(KL()),
        data=data,
        text=which,
        optimisation=Optimisation(
            given.pop("optimizer", lambda params: torch.optim.SGD(params, lr=lr)),
            lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
            clip_norm=None,
            steps=steps,
        ),
        **{key: value for key, value in given.items() if key != "precision"},
    )
    fit = L.Trainer(
        max_epochs=-1,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        precision=given.get("precision", "32-true"),
        **(trainer or {}),
    )
    fit.fit(module, train_dataloaders=data.train_dataloader())
    return module, {name: float(value) for name, value in fit.callback_metrics.items()}


def answer_with(*ids):
    """A student that always gives the same answer, and counts how often it is asked."""

    def answer(sampling, prompts, seed):
        answer.calls += 1
        return [list(ids) for _ in prompts]

    answer.calls = 0
    return answer
