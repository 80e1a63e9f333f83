"""What a run takes, from its configuration: operations, memory and disk, without starting it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from transformers import PreTrainedModel

from amid.config.data_files import RESPONSES
from amid.data.tokens import Tokens
from amid.estimates.memory import training_memory
from amid.estimates.sizes import Facts, Lengths
from amid.experiment.fine_tuning import fine_tuning, prepared
from amid.experiment.plan import is_compared
from amid.results import BEST, RESULT_FILE
from amid.teacher.cache import TeacherCache
from amid.text import TeacherText, Text
from amid.text.answer_store import AnswerFolder
from amid.training.trainer import epochs_of_validation, steps_of

TEXT_BYTES = 4.5
"""Of a token as text in `generations/`."""

ANSWER_BYTES = TEXT_BYTES + 9
"""Of a token of an answer there: its text, and its log-probability to four digits."""

TOKEN_ID_BYTES = 4
"""Of a token where the teacher's answers are kept."""

Config = Mapping[str, Any]


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

    def run(self, cfg: Config) -> Cost:
        """What the run of a configuration takes by itself, with all that it shares done.

        Raises:
            InputError: if its objective is refused.
        """
        objective, text = instantiate(cfg["objective"]), instantiate(cfg["text"])
        student, teacher = self.facts.skeleton(cfg, "student"), None
        asking, asking_teacher = _operations(student), 0.0
        with_teacher = objective.needs_teacher or is_compared(cfg, objective)
        if with_teacher:
            teacher = self.facts.skeleton(cfg, "teacher")
        if objective.needs_teacher:
            asking_teacher = _operations(teacher)
        cached, batch_size = self._cached(cfg), cfg["data"]["batch_size"]
        steps, validations = _steps(cfg["trainer"], self._rows(cfg, "train"), batch_size)

        rows = steps * (text.rows_per_step or batch_size)
        on_answers, answered = text.shares(validations)
        data, answer = self._lengths(cfg, "train"), self._answer(cfg, text)
        of_answers = rows * on_answers * (data.prompt + answer)
        tokens = rows * (1 - on_answers) * data.row + of_answers
        plain = steps * batch_size * self._plain_row(cfg)
        unstored = tokens if not cached else of_answers if text.from_student else 0.0
        scored_tokens, generations = self._scoring(cfg)
        compared = with_teacher and not objective.needs_teacher  # the student's body is run once more
        asked_beside = asking if compared else 0.0 if cached else asking_teacher
        operations = (
            _operations(student, in_training=True) * (tokens + plain)
            + asking_teacher * unstored
            + (asking + asking_teacher * text.sampled) * rows * answered * (data.prompt + answer)
            + validations * self._validation(cfg, asking, asked_beside)
            + asking * scored_tokens
        )

        memory = math.nan
        if student is not None and (teacher is not None or not with_teacher):
            trained_by = teacher if objective.needs_teacher else None
            memory = self._memory(cfg, student, trained_by, body=text.from_student or not cached)
            if teacher is not trained_by:
                memory += _state_bytes(teacher)[1]
        return Cost(
            steps=steps,
            tokens=tokens + plain,
            operations=operations,
            memory=memory,
            disk=_bytes(student) + generations,
            checkpoints=4 * 3 * _bytes(student, trained=True) if steps != 0 else 0.0,
        )

    def shared(self, cfg: Config) -> dict[str, Once]:
        """By what identifies it, the work that the run shares with others."""
        works = {}
        text, objective = instantiate(cfg["text"]), instantiate(cfg["objective"])
        compared = is_compared(cfg, objective)
        asked = objective.needs_teacher or compared
        for role in ("teacher", "student") if asked or text.from_teacher else ("student",):
            if cfg["model"][role].get("sft"):
                run, directory = fine_tuning(dict(cfg), role)
                cost = self.run({**run, "teacher": {}})
                name = cfg["model"][role].get("path") or "random weights"
                works[str(directory)] = Once(
                    f"fine-tuning of the {role} ({name})", cost, (directory / RESULT_FILE).exists()
                )
        name = cfg["model"].get("teacher", {}).get("path") or "random weights"
        made_from = [cfg["model"]["teacher"], _data_key(cfg), cfg["text"] if text.from_teacher else None]
        prompt, train = self._lengths(cfg, "train").prompt, self._rows(cfg, "train")
        response = self._answer(cfg, text) if text.from_teacher else self._lengths(cfg, "train").response
        if text.from_teacher:
            tokens = train * (prompt + response)
            works[json.dumps(["answers", *made_from], default=str)] = Once(
                f"the teacher's answers ({name})",
                self._cost_of_asking(cfg, tokens, TOKEN_ID_BYTES * tokens),
                self._teacher_has(cfg, text, "answers"),
            )
        if asked and self._cached(cfg):
            valid, of_valid = self._rows(cfg, "valid"), self._lengths(cfg, "valid")
            states, head = _state_bytes(self.facts.skeleton(cfg, "teacher"))
            if not compared:
                works[json.dumps(["states", *made_from], default=str)] = Once(
                    f"the teacher's states in training ({name})",
                    self._cost_of_asking(cfg, train * (prompt + response), states * train * response),
                    self._teacher_has(cfg, text, "states"),
                )
            works[json.dumps(["states of valid", *made_from[:2]], default=str)] = Once(
                f"the teacher's states at validations ({name})",
                self._cost_of_asking(cfg, valid * of_valid.row, states * valid * of_valid.response + head),
                self._teacher_has(cfg, text, "states of valid"),
            )
        return works

    def kind(self, cfg: Config) -> tuple[object, str]:
        """Of the student and the data, whose runs take alike for each operation."""
        student = self.facts.skeleton(cfg, "student")
        return json.dumps(cfg["model"]) if student is None else _weights(student), _data_key(cfg)

    def _rows(self, cfg: Config, split: str, name: str | None = None) -> float:
        data = cfg["data"]
        source = data[split] if name is None else data[split][name]
        limit = {"train": None, "valid": data["valid_rows"], "test": data["test_prompts"]}[split]
        rows = self.facts.rows(source, data.get("fields"))
        return rows if limit is None else _at_most(rows, limit)

    def _lengths(self, cfg: Config, split: str) -> Lengths:
        return self.facts.lengths(cfg, cfg["data"][split])

    def _answer(self, cfg: Config, text: Text | None = None) -> float:
        """Mean tokens of an answer that is trained on, or without `text` of one that is scored."""
        sampling = getattr(text, "sampling", None)
        most = cfg["generation"]["max_new_tokens"] if sampling is None else sampling.max_new_tokens
        return _at_most(self._lengths(cfg, "train").response, most)

    def _plain_row(self, cfg: Config) -> float:
        """Mean tokens of a row of plain text; 0 where there is none."""
        plain_text = cfg["data"].get("plain_text")
        if plain_text is None:
            return 0.0
        return (
            self._lengths(cfg, "train").row if plain_text == RESPONSES else float(cfg["data"]["max_length"])
        )

    def _validation(self, cfg: Config, asking: float, asking_teacher: float) -> float:
        """The operations of one validation."""
        data, rows, of_valid = cfg["data"], self._rows(cfg, "valid"), self._lengths(cfg, "valid")
        answered = 0.0 if data.get("valid_metric") is None else _at_most(rows, data["valid_prompts"])
        return rows * of_valid.row * (asking + asking_teacher) + (
            answered * (of_valid.prompt + self._answer(cfg)) * asking
        )

    def _scoring(self, cfg: Config) -> tuple[float, float]:
        """Tokens of prompts and answers of the evaluation sets, and bytes of `generations/`: of each answer
        with its log-probabilities, and of the prompt and its references for each seed."""
        data, seeds = cfg["data"], len(cfg["generation"]["seeds"])
        answers = seeds * cfg["generation"].get("samples", 1) * self._answer(cfg)
        tokens = size = 0.0
        for name, source in data["test"].items():
            if source is not None:
                rows, lengths = self._rows(cfg, "test", name), self.facts.lengths(cfg, source)
                tokens += rows * (lengths.prompt + answers)
                size += rows * (seeds * TEXT_BYTES * lengths.row + ANSWER_BYTES * answers)
        return tokens, size

    def _memory(
        self, cfg: Config, student: PreTrainedModel, teacher: PreTrainedModel | None, body: bool
    ) -> float:
        """Of training, with the teacher's `body`, or its head alone."""
        data = cfg["data"]
        rows = data["micro_batch_size"] or data["batch_size"]
        tokens = data["tokens_per_batch"] or rows * data["max_length"]
        memory = training_memory(student, teacher, tokens, str(cfg["trainer"]["precision"]))
        if teacher is not None and not body:
            memory = replace(memory, teacher=int(_state_bytes(teacher)[1]))
        return memory.total

    def _cost_of_asking(self, cfg: Config, tokens: float, disk: float) -> Cost:
        """Of the teacher alone."""
        teacher = self.facts.skeleton(cfg, "teacher")
        return Cost(0, tokens, _operations(teacher) * tokens, _bytes(teacher), disk, checkpoints=0)

    @staticmethod
    def _cached(cfg: Config) -> bool:
        """Whether the teacher's states will be read from disk, as they are in a sweep by default."""
        teacher = cfg["model"].get("teacher") or {}
        stored = teacher.get("sft") or teacher.get("path")
        unseen = instantiate(cfg["text"]).from_student
        modes = ("cached",) if unseen else ("cached", "auto")
        return cfg["teacher"].get("mode", "live") in modes and bool(stored)

    def _teacher_has(self, cfg: Config, text: Text, what: str) -> bool:
        """Whether the "answers" or "states" of the teacher on the training data, or its "states of valid",
        are on disk; it may be prepared first."""
        cache_dir = Path(cfg["data"]["cache_dir"] if what == "answers" else cfg["teacher"]["cache_dir"])
        precision = str(cfg["trainer"]["precision"])
        teacher = {name: value for name, value in cfg["model"]["teacher"].items() if name != "sft"}
        if cfg["model"]["teacher"].get("sft"):
            best = fine_tuning(dict(cfg), "teacher")[1] / BEST
            teacher = prepared(teacher, "teacher", best)
            if not best.exists():
                return False
        if not any(cache_dir.glob("text-*" if what == "answers" else "teacher-*")):
            return False

        def find() -> bool:
            data, fingerprint = self.facts.data(cfg), instantiate(teacher).fingerprint()
            if what == "states of valid":
                return TeacherCache(cache_dir, fingerprint, precision, [data.valid_tokens]).listed
            train: Tokens | None = data.train_tokens
            if isinstance(text, TeacherText):
                asked = (data.train_tokens, data.tokenizer, text.sampling, text.seed)
                train = AnswerFolder.of_teacher(data.cache_dir, fingerprint, precision, *asked).open()
            if what == "answers" or train is None:
                return train is not None
            return TeacherCache(cache_dir, fingerprint, precision, [train]).listed

        key = [what, teacher, cfg["text"], str(cache_dir), precision, _data_key(cfg)]
        return self.facts.holds(f"whether the teacher's {what} are there", key, find)


def _steps(trainer: Config, rows: float, batch_size: int) -> tuple[float, float]:
    """Optimiser steps of a run, and its validations, that before the first step among them."""
    if math.isnan(rows):
        known = trainer["max_epochs"] == -1 and trainer["max_steps"] > 0
        return (trainer["max_steps"] if known else math.nan), math.nan
    of_all = math.ceil(rows / batch_size)
    steps = steps_of(trainer, of_all)
    epoch = steps_of({**trainer, "max_epochs": 1, "max_steps": -1}, of_all)
    epochs = math.ceil(steps / max(epoch, 1))
    return steps, 1 + math.ceil(epochs / epochs_of_validation(trainer, epochs))


def _data_key(cfg: Config) -> str:
    names = ("train", "valid", "valid_rows", "template", "max_length", "max_prompt_length", "fields")
    return json.dumps(
        [cfg["model"]["tokenizer"], *(cfg["data"].get(name) for name in names)], sort_keys=True, default=str
    )


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
