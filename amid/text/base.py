"""The common parts of every choice of text: its interface, the rows made of answers, and seeds."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from amid.data.tokens import NO_ROW, Row, Tokens
from amid.generation.sampling import MixedAnswer, Sampling
from amid.losses import Loss, WeightedSum


class Answerer(Protocol):
    """The student, as it is at a step, and its teacher."""

    @property
    def end(self) -> int:
        """The id of the token that ends an answer, EOS."""

    def __call__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """Returns the token ids of the student's answer to each prompt, with EOS where the answer ended."""

    def mixed(
        self, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int, teacher_share: float
    ) -> list[MixedAnswer]:
        """Returns an answer that student and teacher draw together for each prompt (`Sampling.mixed`)."""


class Text:
    """The source of the responses that the student is trained on: the data, the teacher or the student.

    A run asks it at each optimiser step.
    """

    from_teacher = False
    """Whether the teacher answers the training prompts before the training."""
    from_student = False
    """Whether steps may be taken on text of the student."""
    sampled = False
    """Whether rows carry values of their sampling, in every step."""
    threshold: float | None = None
    """The probability of a step on text of the student, where it changes during training."""
    rows_per_step: int | None = None
    """Rows of an optimiser step, where the number differs from the data's."""

    def begin(self, tokens: Tokens) -> None:
        """Takes note of the training set, before the first step."""

    @property
    def answer_share(self) -> float:
        """The largest share of the rows trained on that are answers; NaN if not known."""
        return math.nan if self.from_student else float(self.from_teacher)

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> Sequence[Row] | None:
        """Returns the rows to train on in place of the data's rows; None for the data's rows.

        The choice depends only on the settings, the step and the validations so far.

        Args:
            prompts: token ids of the prompts of the data's rows.
            step: optimiser steps taken so far.
            steps: optimiser steps of the run.
            answer: the student and its teacher, as they are at this step.
        """
        return None

    def validated(self, cross_entropy: float) -> None:
        """Takes note of a validation's cross-entropy in nats a token; the first precedes the training."""

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run continues from: numbers and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a stored state."""


class DataText(Text):
    """The data's own responses."""


def prompts_of(rows: Iterable[Row]) -> list[list[int]]:
    """The token ids of the prompts of all rows."""
    return [row.ids[: row.n_prompt].tolist() for row in rows]


def on_student_text(objective: Loss) -> Loss | None:
    """Returns the part of an objective that applies to the student's own text; None if no part does.

    Tokens of the student are no labels, so a sum loses its terms that need labels, such as cross-entropy.
    """
    if isinstance(objective, WeightedSum):
        parts = [(weight, on_student_text(term)) for weight, term in objective.terms]
        terms = [(weight, part) for weight, part in parts if part is not None]
        return WeightedSum(terms, fused=objective.uses_fused) if terms else None
    return None if objective.needs_labels else objective


def rows_of_answers(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Row]:
    """Returns a row for each prompt and its answer; it stands for no row of the data."""
    return [
        Row(torch.tensor([*prompt, *ids], dtype=torch.int32), len(prompt), NO_ROW)
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


def seed_of(seed: int, step: int) -> int:
    """A seed for what is drawn at a step."""
    return random.Random(f"{seed} text {step}").getrandbits(48)
