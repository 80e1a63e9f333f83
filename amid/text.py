"""Whose text is trained on: the data's responses, the teacher's, the student's own, or one of both."""

import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import lightning as L
import torch
from torch import Tensor, distributed
from transformers import PreTrainedTokenizerBase

from amid.answers import AnswerFolder
from amid.data.datamodule import NO_ROW, MicroBatch, Row, SampledRow, Tokens, endless
from amid.data.prompts import IGNORE
from amid.errors import InputError
from amid.generation import MixedAnswer, Sampling
from amid.losses import Loss, WeightedSum, rewards_to_go
from amid.models import ModelSource
from amid.progress import announce
from amid.states import only_writer

Labels = Literal["shifted", "unshifted"]
AnyRow = TypeVar("AnyRow", Row, SampledRow)


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

    def begin(self, tokens: Tokens) -> None:
        """Takes note of the training set, before the first step."""

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> Sequence[Row | SampledRow] | None:
        """What is trained on in place of the data's rows; None for these.

        The choice depends on the settings and the step, and on nothing that differs between devices.

        Args:
            prompts: token ids of the prompts of the data's rows.
            step: optimiser steps taken so far.
            steps: optimiser steps of the run.
            answer: the student.
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


class TeacherText(Text):
    """The teacher's answers to the training prompts, one to each: sequence-level distillation.

    Kim & Rush (arXiv 1606.07947) train on the teacher's mode, which greedy decoding stands for here.

    Args:
        max_new_tokens: tokens of an answer at most; one that is cut there has no EOS.
        temperature: 0 for greedy decoding.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch_size: answers drawn at once, at most. Changes memory and speed, not the text.
        seed: of the random numbers, where the temperature is above 0.

    Raises:
        InputError: for a value outside its range.
    """

    from_teacher = True

    def __init__(
        self,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        self.sampling = _sampling(max_new_tokens, temperature, top_p, top_k, batch_size)
        self.seed = seed

    def training_set(
        self,
        tokens: Tokens,
        source: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        fabric: L.Fabric,
        precision: str,
        cache_dir: Path,
    ) -> Tokens:
        """The prompts of `tokens`, in their order, with the teacher's answers.

        They are written once, in the folder of `AnswerFolder.of_teacher`, and read by every later run. A
        killed writer goes on from its last file; of several runs at once one writes, and the others wait.

        Args:
            tokens: the training set.
            source: the teacher's weights; not loaded where its text is whole.
            tokenizer: of the data.
            fabric: device and precision that the answers are drawn with.
            precision: its name.
            cache_dir: where the folder is made.

        Raises:
            InputError: if the teacher cannot be loaded, or has random weights.
        """
        teacher = source.fingerprint()
        if teacher is None:
            raise InputError(
                "text=teacher: a teacher of random weights is another one in each run; give "
                "model.teacher.path= or model.teacher.sft, or use text=data"
            )
        folder = AnswerFolder.of_teacher(
            cache_dir, teacher, precision, tokens, tokenizer, self.sampling, self.seed
        )
        found = folder.open()
        if found is not None:
            announce(f"The teacher's text is complete in {folder.folder} ({len(found):,} answers)")
            return found
        with only_writer(folder.folder, "the teacher's text"):
            found = folder.open()  # another run may have written it by now
            if found is not None:
                return found
            announce(f"Writing the teacher's answers to {len(tokens):,} prompts in {folder.folder}")
            model: Any = source.load(tokenizer).to(fabric.device)  # type: ignore[arg-type]

            def answer(some: Sequence[Sequence[int]], part: int) -> list[list[int]]:
                with fabric.autocast():
                    drawn = self.sampling.token_ids(
                        model, tokenizer, some, _seed(self.seed, part), vocabulary=len(tokenizer)
                    )
                return [ids for (ids,) in drawn]

            folder.write(answer)
            found = folder.open()
            if found is None:
                raise OSError(f"the teacher's text in {folder.folder} changed while it was written")
            return found


class StudentText(Text):
    """The student's own answers, as it is at each step: in all steps, or in each with a probability.

    A share of 1 is on-policy distillation: ImitKD (arXiv 2009.07253), GKD with λ = 1 (2306.13649); 0.5 is
    GKD's default.

    Args:
        max_new_tokens: tokens of an answer at most; one that is cut there has no EOS.
        share: the probability, in (0, 1], that a step is taken on the student's text and not on the data's.
        labels: "shifted", as the data's: each token of an answer, EOS included, is counted where it is
            predicted. "unshifted", as in DistiLLM's code and its forks: the label of a token stands at the
            token itself, and EOS, their padding, is dropped; so the first token of an answer is not
            counted, and what is predicted after its last one is, also where the answer was cut.
        temperature: 0 for greedy decoding.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch_size: answers drawn at once, at most.
        seed: of the random numbers, together with the step.

    Raises:
        InputError: for a value outside its range.
    """

    from_student = True

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
        if not 0 < share <= 1:
            raise InputError(f"text.share={share} must be in (0, 1]; for none, use text=data")
        self.share, self.labels, self.seed = share, _known(labels), seed
        self.sampling = _sampling(max_new_tokens, temperature, top_p, top_k, batch_size)

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> list[Row] | None:
        """As `Text` says."""
        if _uniform(self.seed, step) >= self.share:
            return None
        return _by_student(answer, self.sampling, prompts, _seed(self.seed, step), self.labels)


class AdaptiveText(Text):
    """DistiLLM's choice between data, the student's text, and a replay of it (arXiv 2402.03898).

    With a threshold φ, a buffer of the student's latest answers, and a number u in [0, 1) drawn at each step:

        u < φ (1 - step/steps), or u < φ while the buffer is not full:   the student answers; kept
        u < φ otherwise:                                                 rows drawn from the buffer
        u ≥ φ:                                                           the data

    φ rises by `increase`, at most to 1, at each validation whose cross-entropy on the data is not below that
    of the reference + `tolerance`; then that validation becomes the reference. The first reference is the
    validation before the training.

    Args:
        max_new_tokens: tokens of an answer at most; one that is cut there has no EOS.
        threshold: φ at first, in [0, 1].
        increase: of φ, in [0, 1].
        tolerance: nats a token; below 0, as much better it must be.
        capacity: rows of the buffer; when it is full the oldest leave.
        labels: see `StudentText`.
        temperature: 0 for greedy decoding.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch_size: answers drawn at once, at most.
        seed: of the random numbers, together with the step.

    Raises:
        InputError: for a value outside its range.
    """

    from_student = True

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
        for name, value in (("threshold", threshold), ("increase", increase)):
            if not 0 <= value <= 1:
                raise InputError(f"text.{name}={value} must be in [0, 1]")
        if not math.isfinite(tolerance):
            raise InputError(f"text.tolerance={tolerance} must be a finite number of nats, such as 0.1")
        if capacity < 1:
            raise InputError(f"text.capacity={capacity} must be at least 1")
        self.sampling = _sampling(max_new_tokens, temperature, top_p, top_k, batch_size)
        self.threshold: float = threshold
        self.increase, self.tolerance, self.seed = increase, tolerance, seed
        self.labels = _known(labels)
        self.reference: float | None = None
        self.buffer: deque[Row] = deque(maxlen=capacity)

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> list[Row] | None:
        """As `Text` says."""
        u = _uniform(self.seed, step)
        if u >= self.threshold:
            return None
        if u < self.threshold * (1 - step / steps) or len(self.buffer) < (self.buffer.maxlen or 0):
            rows = _by_student(answer, self.sampling, prompts, _seed(self.seed, step), self.labels)
            self.buffer.extend(_of_all_devices(rows))
            return rows
        _, rank = _devices()
        rng = random.Random(f"{self.seed} replay {step} {rank}")
        return rng.sample(list(self.buffer), min(len(prompts), len(self.buffer)))

    def validated(self, cross_entropy: float) -> None:
        """As `Text` says."""
        if self.reference is None:
            self.reference = cross_entropy
        elif cross_entropy >= self.reference + self.tolerance:
            self.reference = cross_entropy
            self.threshold = min(self.threshold + self.increase, 1.0)

    def state(self) -> dict[str, Any]:
        """As `Text` says."""
        kept = Tokens.of((ids.tolist(), n_prompt) for ids, n_prompt, _ in self.buffer)
        return {"threshold": self.threshold, "reference": self.reference, **kept.tensors}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """As `Text` says."""
        self.threshold, self.reference = state["threshold"], state["reference"]
        kept = Tokens.of_tensors(state)
        self.buffer.clear()
        self.buffer.extend(
            (ids, n_prompt, NO_ROW) for ids, n_prompt, _ in (kept[i] for i in range(len(kept)))
        )


class RolloutText(Text):
    """MiniLLM's samples of student and teacher (arXiv 2306.08543), each used for several optimiser steps.

    A sample answers `batches` times `rows_per_step` prompts of the training set on each device, taken in an
    order of its own, each token drawn from q̃ = a p + (1-a) q with the student as it then is. It is gone
    through `epochs` times, in another order each time, a batch a step. The log q̃ and the rewards-to-go that
    come with the rows stay those of the sampling.

    Args:
        max_new_tokens: tokens of an answer at most; one that is cut there has no EOS.
        rows_per_step: rows of an optimiser step, on each device.
        batches: of these in a sample.
        epochs: how often a sample is gone through; 1 with one batch is a new sample in each step.
        teacher_share: a, 0 ≤ a < 1.
        normalise: see `amid.losses.rewards_to_go`.
        batch_size: answers drawn at once, at most.
        seed: of the random numbers, together with the number of the sample.

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
        for name, value in (("rows_per_step", rows_per_step), ("batches", batches), ("epochs", epochs)):
            if value < 1:
                raise InputError(f"text.{name}={value} must be at least 1")
        if not 0 <= teacher_share < 1:
            raise InputError(f"text.teacher_share={teacher_share} must be in [0, 1); published: 0.2")
        self.sampling = _sampling(max_new_tokens, 1.0, 1.0, 0, batch_size)
        self.rows_per_step, self.batches, self.epochs = rows_per_step, batches, epochs
        self.teacher_share, self.normalise, self.seed = teacher_share, normalise, seed
        self.sample: list[SampledRow] = []
        self._tokens = Tokens.of([])

    def begin(self, tokens: Tokens) -> None:
        """As `Text` says: the prompts are those of `tokens`."""
        self._tokens = tokens

    def rows(
        self, prompts: Sequence[Sequence[int]], step: int, steps: int, answer: Answerer
    ) -> Sequence[Row | SampledRow] | None:
        """As `Text` says; the prompts are those of the sample."""
        number, place = divmod(step, self.batches * self.epochs)
        if place == 0:
            self.sample = self._sample(number, answer)
        epoch, batch = divmod(place, self.batches)
        order = list(range(len(self.sample)))
        random.Random(f"{self.seed} rollout {number} {epoch}").shuffle(order)
        devices, rank = _devices()
        n = self.rows_per_step * devices
        return [self.sample[i] for i in order[batch * n : (batch + 1) * n][rank::devices]]

    def _sample(self, number: int, answer: Answerer) -> list[SampledRow]:
        """That of all devices, each of which answers its part of the prompts."""
        devices, rank = _devices()
        n = self.batches * self.rows_per_step * devices
        places = range(number * n, (number + 1) * n)[rank::devices]
        chosen = endless(places, len(self._tokens), f"{self.seed} prompts")
        prompts = [ids[:n_prompt].tolist() for ids, n_prompt, _ in map(self._tokens.__getitem__, chosen)]
        answers = answer.mixed(self.sampling, prompts, _seed(self.seed, number), self.teacher_share)
        return _of_all_devices(
            [
                (*row, self._of_sampling(drawn))
                for row, drawn in zip(
                    _answered(prompts, [drawn.tokens for drawn in answers]), answers, strict=True
                )
            ]
        )

    def _of_sampling(self, drawn: MixedAnswer) -> Tensor:
        """log q̃ and R of each token, [tokens, 2]."""
        log_p, log_q = drawn.log_teacher.unsqueeze(0), drawn.log_student.unsqueeze(0)
        to_go = rewards_to_go(log_p, log_q, torch.ones_like(log_q, dtype=torch.bool), self.normalise)
        return torch.stack([drawn.log_mixed, to_go.squeeze(0)], dim=-1)

    def state(self) -> dict[str, Any]:
        """As `Text` says: the sample."""
        kept = Tokens.of((ids.tolist(), n_prompt) for ids, n_prompt, _, _ in self.sample)
        return {"sampling": [sampling for _, _, _, sampling in self.sample], **kept.tensors}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """As `Text` says."""
        rows = zip(Tokens.of_tensors(state), state["sampling"], strict=True)
        self.sample = [(ids, n_prompt, NO_ROW, sampling) for (ids, n_prompt, _), sampling in rows]


def prompts_of(micro_batches: Iterable[MicroBatch]) -> list[list[int]]:
    """The token ids of the prompts of all rows."""
    return [
        ids[(mask == 1) & (labels == IGNORE)].tolist()
        for batch in micro_batches
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
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


def _sampling(max_new_tokens: int, temperature: float, top_p: float, top_k: int, batch_size: int) -> Sampling:
    try:
        return Sampling(
            max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, batch_size=batch_size
        )
    except InputError as error:
        raise InputError(str(error).replace("generation.", "text.")) from error


def _answered(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Row]:
    return [
        (torch.tensor([*prompt, *ids], dtype=torch.int32), len(prompt), NO_ROW)
        for prompt, ids in zip(prompts, answers, strict=True)
    ]


def _by_student(
    answer: Answerer, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int, labels: Labels
) -> list[Row]:
    """The student's answers to the prompts, with their labels as `StudentText` says."""
    rows = _answered(prompts, answer(sampling, prompts, seed))
    if labels == "shifted":
        return rows
    # The first token passes for one of the prompt; where no EOS was predicted, one stands in for what was.
    end = torch.tensor([answer.end], dtype=torch.int32)
    return [
        (ids if ids[-1] == end else torch.cat([ids, end]), n_prompt + 1, number)
        for ids, n_prompt, number in rows
    ]


def _known(labels: Labels) -> Labels:
    if labels not in ("shifted", "unshifted"):
        raise InputError(f"text.labels={labels} must be shifted or unshifted")
    return labels


def _uniform(seed: int, step: int) -> float:
    """The number in [0, 1) that decides about a step: the same on every device."""
    return random.Random(f"{seed} coin {step}").random()


def _seed(seed: int, step: int) -> int:
    """A seed for what is drawn at a step."""
    return random.Random(f"{seed} text {step}").getrandbits(48)


def _devices() -> tuple[int, int]:
    """How many there are, and which of them this is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    return distributed.get_world_size(), distributed.get_rank()


def _of_all_devices(rows: list[AnyRow]) -> list[AnyRow]:
    """The rows of each device, one after the other, so that every device keeps the same ones."""
    devices, _ = _devices()
    if devices == 1:
        return rows
    gathered: list[list[AnyRow]] = [[] for _ in range(devices)]
    distributed.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
