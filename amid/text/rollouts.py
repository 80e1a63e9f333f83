"""MiniLLM's samples, drawn from student and teacher."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amid.data.batches import endless
from amid.data.tokens import NO_ROW, Row, Tokens
from amid.generation.sampling import MixedAnswer, Sampling
from amid.losses import rewards_to_go
from amid.settings import check_arguments, nodes
from amid.text.base import Answerer, Text, prompts_of, rows_of_answers, seed_of


class RolloutText(Text):
    """MiniLLM's samples of student and teacher (arXiv 2306.08543), each used for several optimiser steps.

    A sample answers `batches` times `rows_per_step` prompts of the training set, taken in a random order.
    Each token is drawn from q̃ = a p + (1-a) q with the current student. The training goes through a sample
    `epochs` times, in another order each time, one batch a step. The rows keep the log q̃ and the
    rewards-to-go that they had when they were sampled.

    Args:
        max_new_tokens: the most tokens of an answer; a cut answer has no EOS.
        rows_per_step: rows of an optimiser step.
        batches: batches of `rows_per_step` rows in a sample.
        epochs: passes over a sample; 1 with one batch gives a new sample in each step.
        teacher_share: a, 0 ≤ a < 1.
        normalise: see `amid.losses.rewards_to_go`.
        batch_size: the most answers drawn at once.
        seed: the seed of the samples, together with the number of the sample.

    Raises:
        InputError: for a value outside its range.
    """

    from_student = True
    sampled = True

    def __init__(
        self,
        max_new_tokens: int,
        rows_per_step: int,
        batches: int = 4,
        epochs: int = 4,
        teacher_share: float = 0.2,
        normalise: bool = True,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        check_arguments("text.", nodes.RolloutText, locals())
        self.sampling = Sampling(max_new_tokens, batch_size=batch_size)
        self.rows_per_step: int = rows_per_step
        self.batches, self.epochs = batches, epochs
        self.teacher_share, self.normalise, self.seed = teacher_share, normalise, seed
        self.sample: list[Row] = []
        self._tokens = Tokens.of([])

    @property
    def answer_share(self) -> float:
        """Returns 1: every row is a sample."""
        return 1.0

    def begin(self, tokens: Tokens) -> None:
        """Takes the prompts of the training set, to draw samples for."""
        self._tokens = tokens

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> Sequence[Row] | None:
        """Returns rows of the current sample, and draws a new sample when its epochs are over.

        `prompts` are not used: a sample has prompts of its own.
        """
        number, place = divmod(step, self.batches * self.epochs)
        if place == 0:
            self.sample = self._sample(number, answer)
        epoch, batch = divmod(place, self.batches)
        order = list(range(len(self.sample)))
        random.Random(f"{self.seed} rollout {number} {epoch}").shuffle(order)
        n = self.rows_per_step
        return [self.sample[i] for i in order[batch * n : (batch + 1) * n]]

    def _sample(self, number: int, answer: Answerer) -> list[Row]:
        n = self.batches * self.rows_per_step
        chosen = endless(range(number * n, (number + 1) * n), len(self._tokens), f"{self.seed} prompts")
        prompts = prompts_of(map(self._tokens.__getitem__, chosen))
        answers = answer.mixed(self.sampling, prompts, seed_of(self.seed, number), self.teacher_share)
        rows = rows_of_answers(prompts, [drawn.tokens for drawn in answers])
        return [
            row._replace(sampling=self._of_sampling(drawn)) for row, drawn in zip(rows, answers, strict=True)
        ]

    def _of_sampling(self, drawn: MixedAnswer) -> Tensor:
        """log q̃ and R of each token, [tokens, 2]."""
        log_p, log_q = drawn.log_teacher.unsqueeze(0), drawn.log_student.unsqueeze(0)
        to_go = rewards_to_go(log_p, log_q, torch.ones_like(log_q, dtype=torch.bool), self.normalise)
        return torch.stack([drawn.log_mixed, to_go.squeeze(0)], dim=-1)

    def state(self) -> dict[str, Any]:
        """Returns the current sample, as tensors."""
        kept = Tokens.of((row.ids.tolist(), row.n_prompt) for row in self.sample)
        return {"sampling": [row.sampling for row in self.sample], **kept.tensors}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues with a stored sample."""
        rows = zip(Tokens.of_tensors(state), state["sampling"], strict=True)
        self.sample = [row._replace(number=NO_ROW, sampling=sampling) for row, sampling in rows]
