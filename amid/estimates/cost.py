"""What a run takes, from its configuration: operations, memory and disk, without starting it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from amid.config.data_files import RESPONSES
from amid.data.tokens import Tokens
from amid.estimates.memory import training_memory
from amid.estimates.sizes import Facts, Lengths
from amid.experiment.plan import Plan
from amid.results import BEST, RESULT_FILE
from amid.teacher.cache import TeacherCache
from amid.text import TeacherText, Text
from amid.text.answer_store import AnswerFolder
from amid.training.length import Length

TEXT_BYTES = 4.5
"""Of a token as text in `generations/`."""

ANSWER_BYTES = TEXT_BYTES + 9
"""Of a token of an answer there: its text, and its log-probability to four digits."""

TOKEN_ID_BYTES = 4
"""Of a token where the teacher's answers are kept."""


@dataclass(frozen=True)
class Cost:
    """What a run takes; NaN for what is not known, a part of it being unknown."""

    steps: float = math.nan
    tokens: float = math.nan
    """That go through the student in training, without padding; plain text among them."""
    operations: float = math.nan
    """Floating-point operations: 6 for each weight that is trained and each token, 4 for a frozen one that
    gradients go through, 2 for one of a model that is asked, also where it draws answers."""
    memory: float = math.nan
    """Bytes while it trains, as `training_memory` counts."""
    disk: float = math.nan
    """Bytes that it leaves: its weights, and its answers to the evaluation sets."""
    checkpoints: float = math.nan
    """Further bytes on disk while it trains: the best epoch's checkpoint, the two latest, and
    the next one as it is written, with the optimiser's moments."""


@dataclass(frozen=True)
class Once:
    """Work that several runs share."""

    what: str
    cost: Cost
    done: bool


class Estimator:
    """What runs take, from their configurations and from what is known of models and data, in `facts`.

    Answers are taken to be as long as the responses of the training data on average, or as they may be where
    that is shorter. The model reads a prompt once for all its answers.
    """

    def __init__(self) -> None:
        self.facts = Facts()

    def run(self, plan: Plan) -> Cost:
        """What a run takes by itself, with all that it shares done.

        Raises:
            InputError: if its objective is refused.
        """
        objective, text, batch_size = plan.objective, plan.text, plan.data_settings.batch_size
        student = self.facts.skeleton(plan, "student")
        teacher = self.facts.skeleton(plan, "teacher") if plan.asks_teacher else None
        asking = _operations(student)
        asking_teacher = _operations(teacher) if objective.needs_teacher else 0.0
        steps, validations = _steps(plan.length, self._rows(plan, "train"), batch_size)

        rows = steps * (text.rows_per_step or batch_size)
        on_answers, answered = text.shares(validations)
        data, answer = self._lengths(plan, "train"), self._answer(plan, text)
        of_answers = rows * on_answers * (data.prompt + answer)
        tokens = rows * (1 - on_answers) * data.row + of_answers
        plain = steps * batch_size * self._plain_row(plan)
        cached = _is_cached(plan)
        unstored = tokens if not cached else of_answers if text.from_student else 0.0
        scored_tokens, generations = self._scoring(plan)
        compared = plan.asks_teacher and not objective.needs_teacher  # the student's body is run once more
        asked_beside = asking if compared else 0.0 if cached else asking_teacher
        operations = (
            _operations(student, in_training=True) * (tokens + plain)
            + asking_teacher * unstored
            + (asking + asking_teacher * text.sampled) * rows * answered * (data.prompt + answer)
            + validations * self._validation(plan, asking, asked_beside)
            + asking * scored_tokens
        )
        return Cost(
            steps=steps,
            tokens=tokens + plain,
            operations=operations,
            memory=_memory(plan, student, teacher, body=text.from_student or not cached),
            disk=_bytes(student) + generations,
            checkpoints=4 * 3 * _bytes(student, trained=True) if steps != 0 else 0.0,
        )

    def shared(self, plan: Plan) -> dict[str, Once]:
        """By what identifies it, the work that the run shares with others."""
        works = self._fine_tunings(plan)
        from_teacher = plan.text.from_teacher
        if not (plan.asks_teacher or from_teacher):
            return works
        name = plan.models["teacher"].path or "random weights"
        made_from = plan.fingerprint("model.teacher", *_TEXT, *(["text"] if from_teacher else []))
        train, lengths = self._rows(plan, "train"), self._lengths(plan, "train")
        response = self._answer(plan, plan.text) if from_teacher else lengths.response
        tokens = train * (lengths.prompt + response)
        if from_teacher:
            works[f"answers {made_from}"] = Once(
                f"the teacher's answers ({name})",
                self._cost_of_asking(plan, tokens, TOKEN_ID_BYTES * tokens),
                self._teacher_has(plan, "answers"),
            )
        if plan.asks_teacher and _is_cached(plan):
            states, head = _state_bytes(self.facts.skeleton(plan, "teacher"))
            if not plan.compared:
                works[f"states {made_from}"] = Once(
                    f"the teacher's states in training ({name})",
                    self._cost_of_asking(plan, tokens, states * train * response),
                    self._teacher_has(plan, "states"),
                )
            valid, of_valid = self._rows(plan, "valid"), self._lengths(plan, "valid")
            works[f"states of valid {plan.fingerprint('model.teacher', *_TEXT)}"] = Once(
                f"the teacher's states at validations ({name})",
                self._cost_of_asking(plan, valid * of_valid.row, states * valid * of_valid.response + head),
                self._teacher_has(plan, "states of valid"),
            )
        return works

    def _fine_tunings(self, plan: Plan) -> dict[str, Once]:
        works = {}
        for role, tuning in plan.fine_tunings.items():
            directory, name = plan.fine_tuning_folder(role), plan.models[role].path or "random weights"
            works[str(directory)] = Once(
                f"fine-tuning of the {role} ({name})", self.run(tuning), (directory / RESULT_FILE).exists()
            )
        return works

    def kind(self, plan: Plan) -> tuple[object, str]:
        """Of the student and the data, whose runs take alike for each operation."""
        student = self.facts.skeleton(plan, "student")
        return plan.fingerprint("model") if student is None else _weights(student), plan.fingerprint(*_TEXT)

    def _rows(self, plan: Plan, split: str, name: str | None = None) -> float:
        data = plan.data_settings
        source = getattr(data, split) if name is None else data.test[name]
        limit = {"train": None, "valid": data.valid_rows, "test": data.test_prompts}[split]
        rows = self.facts.rows(source, data.fields)
        return rows if limit is None else _at_most(rows, limit)

    def _lengths(self, plan: Plan, split: str) -> Lengths:
        return self.facts.lengths(plan, getattr(plan.data_settings, split))

    def _answer(self, plan: Plan, text: Text | None = None) -> float:
        """Mean tokens of an answer that is trained on, or without `text` of one that is scored."""
        sampling = getattr(text, "sampling", None) or plan.sampling
        return _at_most(self._lengths(plan, "train").response, sampling.max_new_tokens)

    def _plain_row(self, plan: Plan) -> float:
        """Mean tokens of a row of plain text; 0 where there is none."""
        plain_text = plan.data_settings.plain_text
        if plain_text is None:
            return 0.0
        return self._lengths(plan, "train").row if plain_text == RESPONSES else plan.data_settings.max_length

    def _validation(self, plan: Plan, asking: float, asking_teacher: float) -> float:
        """The operations of one validation."""
        data, rows, of_valid = plan.data_settings, self._rows(plan, "valid"), self._lengths(plan, "valid")
        answered = 0.0 if data.valid_metric is None else _at_most(rows, data.valid_prompts)
        return rows * of_valid.row * (asking + asking_teacher) + (
            answered * (of_valid.prompt + self._answer(plan)) * asking
        )

    def _scoring(self, plan: Plan) -> tuple[float, float]:
        """Tokens of prompts and answers of the evaluation sets, and bytes of `generations/`: of each answer
        with its log-probabilities, and of the prompt and its references for each seed."""
        seeds = len(plan.sampling.seeds)
        answers = seeds * plan.sampling.samples * self._answer(plan)
        tokens = size = 0.0
        for name, source in plan.data_settings.test.items():
            if source is not None:
                rows, lengths = self._rows(plan, "test", name), self.facts.lengths(plan, source)
                tokens += rows * (lengths.prompt + answers)
                size += rows * (seeds * TEXT_BYTES * lengths.row + ANSWER_BYTES * answers)
        return tokens, size

    def _cost_of_asking(self, plan: Plan, tokens: float, disk: float) -> Cost:
        """Of the teacher alone."""
        teacher = self.facts.skeleton(plan, "teacher")
        return Cost(0, tokens, _operations(teacher) * tokens, _bytes(teacher), disk, checkpoints=0)

    def _teacher_has(self, plan: Plan, what: str) -> bool:
        """Whether the "answers" or "states" of the teacher on the training data, or its "states of valid",
        are on disk; it may be prepared first."""
        text = plan.text
        cache_dir = Path(plan.data_settings.cache_dir if what == "answers" else plan.supply.cache_dir)
        if "teacher" in plan.fine_tunings:
            best = plan.fine_tuning_folder("teacher") / BEST
            if not best.exists():
                return False
            plan = plan.with_model("teacher", best)
        if not any(cache_dir.glob("text-*" if what == "answers" else "teacher-*")):
            return False
        source, precision = plan.source("teacher"), plan.trainer.precision

        def find() -> bool:
            data, fingerprint = self.facts.data(plan), source.fingerprint()
            assert fingerprint is not None
            if what == "states of valid":
                return TeacherCache(cache_dir, fingerprint, precision, [data.valid_tokens]).listed
            train: Tokens | None = data.train_tokens
            if isinstance(text, TeacherText):
                asked = (data.train_tokens, data.tokenizer, text.sampling, text.seed)
                train = AnswerFolder.of_teacher(data.cache_dir, fingerprint, precision, *asked).open()
            if what == "answers" or train is None:
                return train is not None
            return TeacherCache(cache_dir, fingerprint, precision, [train]).listed

        key = [what, str(source), str(cache_dir), precision, plan.fingerprint("text", *_TEXT)]
        return self.facts.holds(f"whether the teacher's {what} are there", key, find)


_TEXT = (
    *("model.tokenizer", "data.train", "data.valid", "data.valid_rows", "data.template", "data.max_length"),
    *("data.max_prompt_length", "data.fields"),
)
"""The settings that decide which rows of training and validation data there are, as token ids."""


def _is_cached(plan: Plan) -> bool:
    """Whether the teacher's states will be read from disk, as they are in a sweep by default."""
    teacher = plan.models.get("teacher")
    stored = teacher is not None and (teacher.sft or teacher.path)
    modes = ("cached",) if plan.text.from_student else ("cached", "auto")
    return bool(stored) and plan.supply.mode in modes


def _memory(
    plan: Plan, student: PreTrainedModel | None, teacher: PreTrainedModel | None, body: bool
) -> float:
    """Of training: with the `body` of a teacher that the objective needs, or its head alone; NaN where a
    model is not known."""
    if student is None or (teacher is None and plan.asks_teacher):
        return math.nan
    data = plan.data_settings
    tokens = data.tokens_per_batch or (data.micro_batch_size or data.batch_size) * data.max_length
    trained_by = teacher if plan.objective.needs_teacher else None
    memory = training_memory(student, trained_by, tokens, plan.trainer.precision)
    head = 0 if teacher is None else int(_state_bytes(teacher)[1])
    if not body or trained_by is None:
        memory = replace(memory, teacher=head)
    return memory.total


def _steps(length: Length, rows: float, batch_size: int) -> tuple[float, float]:
    """Optimiser steps of a run, and its validations, that before the first step among them."""
    if math.isnan(rows):
        known = length.max_epochs == -1 and length.max_steps > 0
        return (length.max_steps if known else math.nan), math.nan
    course = length.over(math.ceil(rows / batch_size))
    return course.steps, course.validations


def _weights(model: PreTrainedModel, trained: bool = False) -> int:
    """How many there are, or are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trained)


def _operations(model: PreTrainedModel | None, in_training: bool = False) -> float:
    """Of a model at a token: asked, or in training, forward and backward."""
    if model is None:
        return math.nan
    return 4 * _weights(model) + 2 * _weights(model, trained=True) if in_training else 2 * _weights(model)


def _bytes(model: PreTrainedModel | None, trained: bool = False) -> float:
    """Of all weights, or those that are trained."""
    if model is None:
        return math.nan
    return sum(weight.nbytes for weight in model.parameters() if weight.requires_grad or not trained)


def _state_bytes(model: PreTrainedModel | None) -> tuple[float, float]:
    """Of the last hidden state of one position, and of the head."""
    if model is None:
        return math.nan, math.nan
    head: Any = model.get_output_embeddings()
    return head.weight.shape[1] * head.weight.dtype.itemsize, head.weight.nbytes


def _at_most(value: float, most: float) -> float:
    """The smaller one; NaN where `value` is."""
    return value if math.isnan(value) else min(value, most)
