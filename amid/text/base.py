"""What every choice of text shares: its interface, the rows that answers make, and seeds."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from amid.data.prompts import IGNORE
from amid.data.tokens import NO_ROW, MicroBatch, Row, SampledRow, Tokens
from amid.errors import InputError
from amid.generation.sampling import MixedAnswer, Sampling
from amid.losses import Loss, WeightedSum


class Answerer(Protocol):
    """The student, as it is at a step, and its teacher."""

    @property
    def end(self) -> int:
        """The id of the token that ends an answer, EOS."""

    def __call__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """The token ids of its answer to each prompt, EOS included where it ended."""

    def mixed(
        self, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int, teacher_share: float
    ) -> list[MixedAnswer]:
        """An answer of it and its teacher to each prompt, as `Sampling.mixed` says."""


class Text:
    """Whose responses follow the prompts of the data. A run asks it at each optimiser step."""

    from_teacher = False
    """Whether the teacher answers the training prompts before the training."""
    from_student = False
    """Whether steps may be taken on text of the student."""
    sampled = False
    """Whether rows come with what is known of their sampling, in every step."""
    threshold: float | None = None
    """The probability of such a step, where it moves."""
    rows_per_step: int | None = None
    """Rows of an optimiser step, where they are not as many as the data's."""

    def begin(self, tokens: Tokens) -> None:
        """Takes note of the training set, before the first step."""

    def shares(self, validations: float) -> tuple[float, float]:
        """What an estimate of a run needs to know, NaN where it cannot be said.

        Args:
            validations: of the run, that before the first step among them; NaN if that is not known.

        Returns:
            The share of the rows trained on that are answers, and the answers drawn for each row in training.
        """
        return (math.nan, math.nan) if self.from_student else (float(self.from_teacher), 0.0)

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> Sequence[Row | SampledRow] | None:
        """What is trained on in place of the data's rows; None for these.

        The choice between them depends on the settings, the step and the validations so far, and on nothing
        else.

        Args:
            prompts: token ids of the prompts of the data's rows.
            step: optimiser steps taken so far.
            steps: optimiser steps of the run.
            answer: the student and its teacher, as they are at this step.
        """
        return None

    def validated(self, cross_entropy: float) -> None:
        """Takes note of a validation: its cross-entropy in nats a token, first of all before the training."""

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from: numbers and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from it."""


class DataText(Text):
    """The data's own responses."""


def prompts_of(micro_batches: Iterable[MicroBatch]) -> list[list[int]]:
    """The token ids of the prompts of all rows."""
    return [
        ids[(mask == 1) & (labels == IGNORE)].tolist()
        for batch in micro_batches
        for ids, mask, labels in zip(
            *(batch[name].cpu() for name in ("input_ids", "attention_mask", "labels")), strict=True
        )
    ]


def on_student_text(objective: Loss) -> Loss | None:
    """What of an objective is taken on the student's own text, whose tokens are no labels; None for nothing.

    A sum loses its terms that need labels, such as a cross-entropy.
    """
    if isinstance(objective, WeightedSum):
        parts = [(weight, on_student_text(term)) for weight, term in objective.terms]
        terms = [(weight, part) for weight, part in parts if part is not None]
        return WeightedSum(terms, fused=objective.uses_fused) if terms else None
    return None if objective.needs_labels else objective


def sampling_of(
    max_new_tokens: int, temperature: float, top_p: float, top_k: int, batch_size: int
) -> Sampling:
    """The settings of answers drawn for training, whose mistakes are told as those of `text`.

    Raises:
        InputError: for a value outside its range.
    """
    try:
        return Sampling(
            max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, batch_size=batch_size
        )
    except InputError as error:
        raise InputError(str(error).replace("generation.", "text.")) from error


def rows_of_answers(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Row]:
    """A row of each prompt and its answer: of no row of the data."""
    return [
        (torch.tensor([*prompt, *ids], dtype=torch.int32), len(prompt), NO_ROW)
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


def seed_of(seed: int, step: int) -> int:
    """A seed for what is drawn at a step."""
    return random.Random(f"{seed} text {step}").getrandbits(48)
