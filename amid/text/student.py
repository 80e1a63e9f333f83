"""The student's own answers, in some steps or in all, new or replayed."""

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from amid.data.tokens import NO_ROW, Row, Tokens
from amid.generation.sampling import Sampling
from amid.settings import check_arguments, nodes
from amid.text.base import Answerer, Text, rows_of_answers, seed_of

Labels = Literal["shifted", "unshifted"]


class _OnStudentText(Text):
    """Answers of the current student, in some steps or in all."""

    from_student = True
    sampling: Sampling
    labels: Labels
    seed: int

    def _answers(self, prompts: Sequence[Sequence[int]], step: int, answer: Answerer) -> list[Row]:
        """Returns the student's answers to the prompts, with labels shifted or not (see `StudentText`)."""
        rows = rows_of_answers(prompts, answer(self.sampling, prompts, seed_of(self.seed, step)))
        if self.labels == "shifted":
            return rows
        # The first token passes for one of the prompt; without a predicted EOS, one stands in for what was.
        end = torch.tensor([answer.end], dtype=torch.int32)
        return [
            row._replace(
                ids=row.ids if row.ids[-1] == end else torch.cat([row.ids, end]), n_prompt=row.n_prompt + 1
            )
            for row in rows
        ]


class StudentText(_OnStudentText):
    """Answers of the current student: in all steps, or in each step with a probability.

    A share of 1 is on-policy distillation (ImitKD, arXiv 2009.07253; GKD with λ = 1, 2306.13649). A share of
    0.5 is GKD's default.

    Args:
        max_new_tokens: the most tokens of an answer; a cut answer has no EOS.
        share: the probability, in (0, 1], that a step uses the student's text and not the data.
        labels: "shifted": each token of an answer, EOS included, is the label of the position before it, as
            in the data. "unshifted": each token is the label of its own position, and EOS, the padding token,
            is dropped, as in DistiLLM's code and its forks. So the first token of an answer does not count,
            and the position after the last token counts, also if the answer was cut.
        temperature: 0 for greedy decoding.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch_size: answers drawn at once, at most.
        seed: the seed of the samples, together with the step.

    Raises:
        InputError: for a value outside its range.
    """

    def __init__(
        self,
        max_new_tokens: int,
        share: float = 1.0,
        labels: Labels = "shifted",
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        check_arguments("text.", nodes.StudentText, locals())
        self.share, self.labels, self.seed = share, labels, seed
        self.sampling = Sampling(
            max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, batch_size=batch_size
        )

    @property
    def answer_share(self) -> float:
        """`share`."""
        return self.share

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> list[Row] | None:
        """Returns the student's answers to the prompts, with the probability `share`; else None."""
        if _uniform(self.seed, step) >= self.share:
            return None
        return self._answers(prompts, step, answer)


class AdaptiveText(_OnStudentText):
    """DistiLLM's choice between data, the student's text, and a replay of it (arXiv 2402.03898).

    With a threshold φ, a buffer of the student's latest answers, and a number u in [0, 1) drawn at each step:

        u < φ (1 - step/steps), or u < φ while the buffer is not full:   the student answers; kept
        u < φ otherwise:                                                 rows drawn from the buffer
        u ≥ φ:                                                           the data

    At each validation the cross-entropy on the data is compared with the cross-entropy of a reference
    validation. If it is higher by `tolerance` or more, φ rises by `increase`, at most to 1, and this
    validation becomes the reference. The first reference is the validation before the training.

    Args:
        max_new_tokens: the most tokens of an answer; a cut answer has no EOS.
        threshold: φ at the start, in [0, 1].
        increase: the increase of φ, in [0, 1].
        tolerance: in nats a token. If it is below 0, φ rises unless a validation is better by this much.
        capacity: rows of the buffer; a full buffer drops its oldest rows.
        labels: see `StudentText`.
        temperature: 0 for greedy decoding.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch_size: answers drawn at once, at most.
        seed: the seed of the samples, together with the step.

    Raises:
        InputError: for a value outside its range.
    """

    def __init__(
        self,
        max_new_tokens: int,
        threshold: float = 0.0,
        increase: float = 0.1,
        tolerance: float = 0.1,
        capacity: int = 1000,
        labels: Labels = "shifted",
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        check_arguments("text.", nodes.AdaptiveText, locals())
        self.sampling = Sampling(
            max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, batch_size=batch_size
        )
        self.threshold: float = threshold
        self.increase, self.tolerance = increase, tolerance
        self.labels, self.seed = labels, seed
        self.reference: float | None = None
        self.buffer: deque[Row] = deque(maxlen=capacity)

    @property
    def answer_share(self) -> float:
        """Returns 1, to which φ may rise."""
        return 1.0 if self.increase > 0 else self.threshold

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> list[Row] | None:
        """Returns new answers, rows of the buffer, or None for the data's rows, as the class describes."""
        u = _uniform(self.seed, step)
        if u >= self.threshold:
            return None
        if u < self.threshold * (1 - step / steps) or len(self.buffer) < (self.buffer.maxlen or 0):
            rows = self._answers(prompts, step, answer)
            self.buffer.extend(rows)
            return rows
        rng = random.Random(f"{self.seed} replay {step} 0")  # the 0 is an earlier version's, for equal runs
        return rng.sample(list(self.buffer), min(len(prompts), len(self.buffer)))

    def validated(self, cross_entropy: float) -> None:
        """Raises φ if the validation is not better than the reference, as the class describes."""
        if self.reference is None:
            self.reference = cross_entropy
        elif cross_entropy >= self.reference + self.tolerance:
            self.reference = cross_entropy
            self.threshold = min(self.threshold + self.increase, 1.0)

    def state(self) -> dict[str, Any]:
        """Returns φ, the reference and the buffer."""
        kept = Tokens.of((row.ids.tolist(), row.n_prompt) for row in self.buffer)
        return {"threshold": self.threshold, "reference": self.reference, **kept.tensors}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues with a stored φ, reference and buffer."""
        self.threshold, self.reference = state["threshold"], state["reference"]
        kept = Tokens.of_tensors(state)
        self.buffer.clear()
        self.buffer.extend(row._replace(number=NO_ROW) for row in kept)


def _uniform(seed: int, step: int) -> float:
    """The number in [0, 1) that decides about a step, of the seed and the step alone."""
    return random.Random(f"{seed} coin {step}").random()
