"""The training loop of distillation, on Lightning."""

import contextlib
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid.data import InstructionData
from amid.data.tokens import MicroBatch, Row, counted, counted_positions
from amid.distributed import ranks
from amid.distributed.sharding import ShardedStudent
from amid.errors import InputError
from amid.experiment.evaluation import ValidationScore
from amid.generation.sampling import MixedAnswer, Sampling
from amid.losses import KL, CrossEntropy, Loss, Objective
from amid.losses.inputs import Stats
from amid.measures import VALIDATION
from amid.schedule import Schedule
from amid.teacher.signals import CachedTeacher, Teacher
from amid.text import Text, on_student_text, prompts_of
from amid.training.counted_loss import CountedLoss
from amid.training.gradient_sums import GradientSums
from amid.training.learning_rate import scheduled
from amid.training.normalisation import denominators
from amid.training.validation import Measured, token_measures

_STEPS_OF_A_SEED = 10**7
"""A number larger than the steps of any run, so that steps of two seeds never have the same number."""

_SEEDS_OF_A_RANK = 2**48
"""The distance between the random seeds of two ranks at a step."""

_LOSS, _TOKENS, _PLACES = "the loss", "tokens without padding", "tokens with padding"
"""Sums over a step beside the measures of its objective."""


class Diverged(Exception):
    """Raised if the student's loss, gradient or logits are not finite at a step, counted from 1."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step


@dataclass(frozen=True)
class Optimisation:
    """The optimiser, learning-rate schedule, gradient clipping and number of steps of a training.

    Args:
        optimizer: from parameters, `params=`, to an optimiser.
        scheduler: makes the learning-rate schedule; `amid.training.learning_rate.scheduled` calls it.
        clip_norm: the largest norm of the gradient, above 0; None for no clipping.
        steps: optimiser steps of the whole training.
    """

    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., LRScheduler]
    clip_norm: float | None
    steps: int


class DistillationModule(L.LightningModule):
    """Trains a student on an objective between it, a frozen teacher and the data.

    One item of the data loader is one optimiser step, given as a list of rows. The ranks of the run share
    them out, and each cuts its rows into micro-batches. The loss is the mean over the counted tokens of all
    micro-batches of all ranks, and gradients are summed over the ranks once a step. So ranks and
    micro-batches change only memory, speed and the random numbers of dropout. With `data.mean=micro_batch`
    the loss is the mean of the micro-batches' means. The student is in train mode, with the dropout of its
    own configuration. The teacher is always in eval mode. If the loss or the gradient of a step is not
    finite, the step does not change the student and raises `Diverged`.

    The module logs the measures of `amid.measures`:

    - `train/NAME`, every `log_every_n_steps` steps and at the last step: the measures of `TRAINING` that the
      objective, its assistant and the text have.
    - `valid/NAME`, at each validation: the measures of `VALIDATION`; some need a teacher.
    - `valid/METRIC` and `valid/METRIC_best`, at each validation: the score of `valid_score`, such as
      `valid/rouge_l` (0..100).

    Shares are from 0 to 1. A sum that a user's own loss adds is logged by its name. `train/loss` includes
    `train/plain_text_loss` times its weight.

    Args:
        student: the model to train.
        teacher: its teacher; None if neither the objective nor a comparison at validations needs a teacher.
        objective: an objective of `amid.losses`.
        data: cuts the rows of an optimiser step into micro-batches, and says over what the loss is a mean.
            With plain text, each step adds the weighted cross-entropy on a batch of plain text: the mean over
            the counted tokens of that batch, or the mean of its micro-batches' means. Both models use the
            tokenizer of `data`.
        text: gives the responses that the student is trained on. The student's own responses need an
            objective that keeps at least one part after `on_student_text`.
        optimisation: optimiser, learning-rate schedule, clipping and number of steps.
        valid_score: scores the student's answers at validations; None for no score.
        log_every_n_steps: steps between two records of the training.
        shared_vocab: the number of first logits that both models have; both models' logits are cut to these.
            None if the models have equally many logits.
        schedule: changes settings of the objective's assistant after each optimiser step, for training and
            validation; None keeps them.
    """

    KEPT: ClassVar = (
        "best_score",
        "response_tokens",
        "before",
        "validation",
        "validated_step",
        "text_counts",
    )

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        objective: Loss,
        data: InstructionData,
        text: Text,
        optimisation: Optimisation,
        valid_score: ValidationScore | None = None,
        log_every_n_steps: int = 1,
        shared_vocab: int | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.teacher = teacher
        self.objective = objective
        self._data, self._text = data, text
        self._on_student_text = on_student_text(objective)
        self._sharded: ShardedStudent | None = None
        self._optimisation, self.steps = optimisation, optimisation.steps
        self._valid_score, self._log_every_n_steps = valid_score, log_every_n_steps
        self._schedule = schedule
        if schedule is not None:
            schedule.begin(objective=objective)
        with_teacher, measures = objective.needs_teacher, token_measures()
        self._loss = CountedLoss(
            student, teacher if with_teacher else None, shared_vocab if with_teacher else None
        )
        self._comparison = (
            None if teacher is None or with_teacher else CountedLoss(student, teacher, shared_vocab)
        )
        self._measured = Measured(objective, measures) if with_teacher else objective
        self._compared = Measured(Objective(KL(), fused=objective.uses_fused), measures)
        self._valid_sums: dict[str, Tensor] = defaultdict(self._zero)
        self._sums: GradientSums | None = None
        self.best_score = float("-inf")
        self.response_tokens = 0
        self.text_counts = {"rows": 0, "student_rows": 0, "student_tokens": 0}
        self.before: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.validated_step = -1

    def configure_optimizers(self) -> Any:
        """The optimiser over the student's trainable weights, and its schedule."""
        how = self._optimisation
        optimizer = how.optimizer(params=[p for p in self.student.parameters() if p.requires_grad])
        return [optimizer], [scheduled(how.scheduler, optimizer, how.steps)]

    def setup(self, stage: str) -> None:
        """Brings the teacher to the student's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def shard(self, device: torch.device) -> None:
        """Spreads the student's weights over the ranks, if they are not spread yet.

        Raises:
            InputError: if the student's decoder layers cannot be found.
        """
        if self._sharded is None:
            for loss in filter(None, (self._loss, self._comparison)):
                loss.agree(packed=self._data.packing)
            self._sharded = ShardedStudent(self.student, device)

    def gather(self) -> None:
        """Gives each rank the whole student again, as a plain model, to be trained no further."""
        if self._sharded is not None:
            self.student, self._sharded = self._sharded.gathered(), None

    def whole_student(self) -> AbstractContextManager[PreTrainedModel]:
        """A context in which each rank has the whole student, as a plain model."""
        return contextlib.nullcontext(self.student) if self._sharded is None else self._sharded.whole()

    def on_train_start(self) -> None:
        """Puts the student into train mode: models come in eval mode."""
        self.student.train()
        self._seed = torch.initial_seed()
        if self._data.sharing == "micro_batches":
            self._sums = GradientSums(self.student.parameters())

    def training_step(self, rows: Sequence[Row], batch_idx: int) -> Tensor:
        """One optimiser step over all its rows; returns its loss.

        Raises:
            Diverged: if its loss or gradient, or the student's logits where it answers, are not finite.
        """
        self._seed_step()
        optimizer = self.optimizers()
        scheduler = self.lr_schedulers()
        assert not isinstance(optimizer, list)
        assert isinstance(scheduler, LRScheduler)
        objective, trained_on = self.objective, rows
        student_text = self._student_text(rows) if self._text.from_student else None
        if student_text is not None:
            assert self._on_student_text is not None
            trained_on, objective = student_text, self._on_student_text
        step = self.trainer.global_step
        logging = (step + 1) % self._log_every_n_steps == 0 or step + 1 == self.steps
        needed = () if self._schedule is None else self._schedule.needs
        loss, means, tokens = self._backward(objective, trained_on, with_stats=logging or bool(needed))
        total, weight = loss, self._data.plain_text_weight
        if (plain_text_loss := self._plain_text_backward()) is not None:
            total = loss + weight * plain_text_loss
        if self._sums is not None:
            self._sums.finish()
        elif self._sharded is None:  # which sums them itself
            ranks.sum_gradients(self.student.parameters())
        clip_norm = self._optimisation.clip_norm
        norm = ranks.clip_gradients(
            self.student.parameters(), float("inf") if clip_norm is None else clip_norm
        )
        values = (float(total), float(norm))
        if not all(map(math.isfinite, values)):
            raise Diverged(step + 1, "loss {:g}, gradient norm {:g}".format(*values))
        optimizer.step()
        optimizer.zero_grad()  # gradients take no memory while the student answers
        self.response_tokens += tokens
        if logging:
            rates = {f"train/{name}": mean for name, mean in means.items()} | self._assistant_rates()
            if plain_text_loss is not None:
                rates["train/plain_text_loss"] = plain_text_loss
            if self._text.from_student:
                rates |= self._text_rates()
            rates |= {"train/gradient_norm": norm, "train/lr": scheduler.get_last_lr()[0]}
            self._record(step, {**rates, "train/loss": total})
        scheduler.step()
        if self._schedule is not None:
            given = {"loss": float(loss)} | {name: float(means[name]) for name in needed}
            self._schedule.update(step=step, steps=self.steps, means=given)
            self._schedule.apply(objective=self.objective)
        self._stop_at_the_last_step()
        return total

    def _share(self, rows: Sequence[Row]) -> Iterator[tuple[MicroBatch | None, int]]:
        """Yields this rank's micro-batches of a step, each with the divisor of its loss.

        With a sharded student all ranks have equally many, and some may be None.
        """
        of_ranks = self._data.shares(rows, ranks.number())
        counts = [[sum(map(counted, part)) for part in parts] for parts in of_ranks]
        divisors = iter(denominators(list(chain(*counts)), self._data.mean))
        own = [[next(divisors) for _ in parts] for parts in of_ranks][ranks.rank()]
        most = max(map(len, of_ranks))
        for number, (part, divisor) in enumerate(zip(of_ranks[ranks.rank()], own, strict=True), 1):
            if self._sharded is not None:
                self._sharded.begin_pass(last=number == most)
            batch = self._data.micro_batch(part)
            yield {name: value.to(self.device) for name, value in batch.items()}, divisor
        if self._sharded is not None:
            for number in range(len(own) + 1, most + 1):
                self._sharded.begin_pass(last=number == most)
                yield None, 1

    def _computed(
        self,
        loss: CountedLoss,
        objective: Loss,
        batch: MicroBatch | None,
        denominator: float,
        **given: bool,
    ) -> tuple[Tensor, Stats]:
        """Returns what `loss` returns, computed where the student has its weights; 0 without a batch."""
        if batch is None:
            assert self._sharded is not None
            return self._sharded.idle(), {}
        if self._sharded is None:
            return loss(objective, batch, denominator, **given)
        return self._sharded.compute(lambda: loss(objective, batch, denominator, **given))

    def _backward(
        self, objective: Loss, rows: Sequence[Row], with_stats: bool
    ) -> tuple[Tensor, dict[str, float | Tensor], int]:
        """Adds this rank's part of the gradient of a step.

        Returns the loss of the step, the means of its measures and its counted tokens, of all ranks.
        """
        sums: dict[str, Tensor] = defaultdict(self._zero)
        for batch, denominator in self._share(rows):
            self._seed_micro_batch(batch)
            part, stats = self._computed(self._loss, objective, batch, denominator, return_stats=with_stats)
            self._add_gradient(part)
            sums[_LOSS] += part.detach()
            for name, value in stats.items():
                sums[name] += value
            if with_stats and batch is not None:
                sums[_TOKENS] += batch["attention_mask"].sum()
                sums[_PLACES] += batch["attention_mask"].numel()
        sums = ranks.totals(sums)
        loss, places = sums.pop(_LOSS), sums.pop(_PLACES, None)
        padding = {} if places is None else {"padding": 1 - sums.pop(_TOKENS) / places}
        tokens = sum(map(counted, rows))
        means = {name: value / max(tokens, 1) for name, value in sums.items()}
        return loss, {**means, **padding}, tokens

    def _add_gradient(self, loss: Tensor) -> None:
        with ranks.exchanging():
            self.manual_backward(loss)
        if self._sums is not None:
            self._sums.add()

    def _zero(self) -> Tensor:
        """Returns a 0 to add to: in float64, which only Apple's GPUs lack."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros((), dtype=dtype, device=self.device)

    def _assistant_rates(self) -> dict[str, float | Tensor]:
        """The α and λ of the assistant, as far as it has them."""
        assistant = getattr(self.objective, "assistant", None)
        names = [name for name in ("alpha", "lam") if hasattr(assistant, name)]
        return {f"train/{name}": float(getattr(assistant, name)) for name in names}

    def _record(self, step: int, rates: Mapping[str, float | Tensor]) -> None:
        """Logs figures of one step.

        Lightning itself would write the figures of earlier steps again where this step has none.
        """
        for name, rate in rates.items():
            self.log(name, rate, prog_bar=name == "train/loss", logger=False)
        row = {name: float(torch.as_tensor(rate, dtype=torch.float32)) for name, rate in rates.items()}
        for logger in self.loggers:
            logger.log_metrics({**row, "epoch": self.current_epoch}, step=step)
            logger.save()

    def _seed_step(self) -> None:
        """Makes dropout depend on the seed, the step and the rank alone, also in a resumed run."""
        step = self._seed * _STEPS_OF_A_SEED + self.trainer.global_step
        torch.manual_seed((step + ranks.rank() * _SEEDS_OF_A_RANK) % 2**63)

    def _seed_micro_batch(self, batch: MicroBatch | None) -> None:
        """Makes dropout depend on the micro-batch in place of the rank, if whole ones are shared out."""
        if self._sums is not None and batch is not None:
            digest = hashlib.blake2b(f"{self._seed} {self.trainer.global_step} ".encode(), digest_size=8)
            digest.update(batch["input_ids"].cpu().numpy().tobytes())
            torch.manual_seed(int.from_bytes(digest.digest()) % 2**63)

    def _stop_at_the_last_step(self) -> None:
        """Ends the training where its steps are done, within an epoch if need be.

        Lightning's own `max_steps` would count the epoch that a run goes on with twice.
        """
        if self.trainer.global_step >= self.steps:
            self.trainer.should_stop = True

    def _student_text(self, of_data: Sequence[Row]) -> Sequence[Row] | None:
        """Returns the student's rows that this step trains on in place of the data; None for the data.

        All ranks have all rows.
        """
        data = self._data
        answer = _Answerer(self.whole_student, self.teacher, data.tokenizer, data.answer_group_size)
        in_order = chain(*data.shares(of_data, 1)[0])
        with self._answering():
            rows = self._text.rows(
                prompts=prompts_of(in_order), step=self.trainer.global_step, steps=self.steps, answer=answer
            )
        self.text_counts["rows"] += len(of_data if rows is None else rows)
        if rows is None:
            return None
        self.text_counts["student_rows"] += len(rows)
        self.text_counts["student_tokens"] += sum(len(row.ids) - row.n_prompt for row in rows)
        return rows

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Raises `Diverged` where a student that was trained has no finite logits to answer with."""
        step = self.trainer.global_step
        try:
            yield
        except FloatingPointError as error:
            if step == 0:
                raise
            raise Diverged(step, str(error)) from error

    def _text_rates(self) -> dict[str, float]:
        """Returns the figures of the text since they were logged last."""
        counts = self.text_counts
        rates = {"train/student_text": counts["student_rows"] / counts["rows"]}
        if counts["student_rows"]:
            rates["train/student_text_tokens"] = counts["student_tokens"] / counts["student_rows"]
        if self._text.threshold is not None:
            rates["train/text_threshold"] = self._text.threshold
        self.text_counts = dict.fromkeys(counts, 0)
        return rates

    def _plain_text_backward(self) -> Tensor | None:
        """Adds the gradient of the loss on plain text; returns that loss without its weight, or None."""
        if self._data.plain_tokens is None:
            return None
        rows = self._data.plain_batch(self.trainer.global_step)
        objective = CrossEntropy(fused=self.objective.uses_fused)
        total = self._zero()
        for batch, denominator in self._share(rows):
            self._seed_micro_batch(batch)
            loss, _ = self._computed(self._loss, objective, batch, denominator)
            self._add_gradient(self._data.plain_text_weight * loss)
            total += loss.detach()
        return ranks.totals({_LOSS: total})[_LOSS]

    def on_validation_start(self) -> None:
        """Empties the sums over the validation set."""
        self._valid_sums.clear()

    def validation_step(self, rows: list[Row], batch_idx: int) -> None:
        """Adds this rank's share of a batch to the sums over the validation set."""
        for batch, _ in self._share(rows):
            with_stats = self.objective.needs_teacher
            loss, stats = self._computed(
                self._loss, self._measured, batch, 1.0, return_stats=with_stats, cross_entropy=True
            )
            self._valid_sums["loss"] += loss
            if batch is not None:
                self._valid_sums["tokens"] += counted_positions(batch).sum()
            if self._comparison is not None:
                stats |= self._computed(self._comparison, self._compared, batch, 1.0, return_stats=True)[1]
            for name in VALIDATION:
                if name in stats:
                    self._valid_sums[name] += stats[name]

    def on_validation_epoch_end(self) -> None:
        """Logs the validation losses, and the score of the student's answers."""
        sums = {name: float(value) for name, value in ranks.totals(self._valid_sums).items()}
        if not sums.get("tokens"):
            raise InputError("the validation data hold no token of a response; choose other data.valid")
        self.validated_step = self.trainer.global_step
        tokens = sums.pop("tokens")
        self.validation = {f"valid_{name}": value / tokens for name, value in sums.items()}
        perplexity = torch.tensor(self.validation["valid_cross_entropy"]).exp()
        self.validation["valid_perplexity"] = float(perplexity)
        for name, value in self.validation.items():
            self.log(VALIDATION[name.removeprefix("valid_")].logged, value)
        self._text.validated(cross_entropy=self.validation["valid_cross_entropy"])
        if self._valid_score is not None:
            name, score = self._valid_score.name, self._score(self._valid_score)
            self.best_score = max(self.best_score, score)
            self.log(f"valid/{name}", score, prog_bar=True)
            self.log(f"valid/{name}_best", self.best_score)
            self.validation[f"valid_{name}"] = score
        if not self.before:
            self.before = {f"{name}_before": value for name, value in self.validation.items()}

    def _score(self, of: ValidationScore) -> float:
        forward = self.trainer.precision_plugin.forward_context()
        with self._answering(), _aside(self.teacher), self.whole_student() as student, forward:
            return of(student, self._data.tokenizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the state that a resumed run needs, without frozen weights: their source has them."""
        frozen = self.frozen()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        for name in self.KEPT:
            checkpoint[name] = getattr(self, name)
        if self._schedule is not None:
            checkpoint["schedule"] = self._schedule.state_dict()
        checkpoint["text"] = self._text.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state that `on_save_checkpoint` keeps."""
        for name in self.KEPT:
            setattr(self, name, checkpoint[name])
        if self._schedule is not None:
            self._schedule.load_state_dict(checkpoint["schedule"])
            self._schedule.apply(objective=self.objective)
        self._text.load_state(checkpoint["text"])

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads weights; frozen weights may be missing, and then stay as they are."""
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = sorted(set(found.missing_keys) - self.frozen())
        if strict and (missing or found.unexpected_keys):
            raise RuntimeError(f"checkpoint: {missing} missing, {found.unexpected_keys} unexpected")
        return found

    def frozen(self) -> set[str]:
        """The names of the weights that are not trained."""
        return {
            name for name, weight in self.named_parameters(remove_duplicate=False) if not weight.requires_grad
        }


def _aside(teacher: Teacher | None) -> AbstractContextManager[None]:
    return contextlib.nullcontext() if teacher is None else teacher.aside()


@dataclass(frozen=True)
class _Answerer:
    """The `Answerer` of this run's student and teacher."""

    student: Callable[[], AbstractContextManager[PreTrainedModel]]
    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerBase
    group_size: int | None

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def __call__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        vocabulary = len(self.tokenizer)
        with _aside(self.teacher), self.student() as student:
            drawn = sampling.token_ids(
                student, self.tokenizer, prompts, seed, vocabulary=vocabulary, group_size=self.group_size
            )
        return [ids for (ids,) in drawn]

    def mixed(
        self, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int, teacher_share: float
    ) -> list[MixedAnswer]:
        assert self.teacher is not None
        assert not isinstance(self.teacher, CachedTeacher)  # see TeacherSupply
        teacher, tokenizer = self.teacher.model, self.tokenizer
        with self.student() as student:
            drawn = sampling.mixed(student, teacher, tokenizer, prompts, seed, teacher_share, self.group_size)
        return drawn
