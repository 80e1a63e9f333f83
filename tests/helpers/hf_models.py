"""The built-in pair of random weights, rows for a transformers `Trainer`, and its losses on whole logits."""

import copy

import torch
import yaml
from transformers import DataCollatorForSeq2Seq

from amid.config.folders import CONF
from amid.data.builtin import corpus, tokenizer
from amid.losses import AlphaBeta, AlphaMixture, Objective
from amid.models.source import ModelSource

TOKENS = tokenizer()
TINY = yaml.safe_load((CONF / "model" / "tiny.yaml").read_text())["model"]


def tiny(role, seed=0):
    """One of the built-in pair, of random weights large enough that p, q and r differ."""
    torch.manual_seed(seed)
    return ModelSource(architecture=TINY[role]["architecture"]).load(TOKENS)


def rows(n, split="train"):
    """Prompt and answer of built-in examples, of unequal lengths; the prompt is not counted."""
    found = []
    for example in corpus(split, size=n):
        prompt = TOKENS(f"<instruction>{example.instruction}<response>").input_ids
        answer = [*TOKENS(example.outputs[0]).input_ids, TOKENS.eos_token_id]
        found.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return found


def collator(side="right"):
    tokens = copy.deepcopy(TOKENS)
    tokens.padding_side = side
    return DataCollatorForSeq2Seq(tokens)


def amid(**settings):
    return Objective(AlphaBeta(0.2, 0.7), AlphaMixture(-3.0, 0.3), **settings)


def on_whole_logits(objective, student, teacher, batch, vocabulary=None):
    """The objective of the logits at all positions, by autograd, masked by the labels."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits[:, :-1, :vocabulary]
    given = {"labels": labels} if objective.needs_labels else {}
    return objective(
        student_logits=student(**inputs).logits[:, :-1, :vocabulary],
        teacher_logits=teacher_logits,
        mask=labels != -100,
        **given,
    )


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)
