"""The cost of a run, estimated from its configuration before it starts: steps, tokens, memory and disk."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from amid.config.data_files import RESPONSES
from amid.data.sets import Use
from amid.estimates.memory import optimizer_bytes, spread, training_memory
from amid.estimates.sizes import Facts, Lengths
from amid.experiment.plan import Plan
from amid.models.placement import bytes_on_a_device
from amid.models.quantization import weight_bytes
from amid.results import RESULT_FILE
from amid.settings.nodes import Trainer
from amid.teacher.state_codes import EXACT, bytes_of_position
from amid.text import Text
from amid.training.averaging import AverageWeights
from amid.training.length import Length

TEXT_BYTES = 4.5
"""Bytes of a token as text in `generations/`."""

ANSWER_BYTES = TEXT_BYTES + 9
"""Bytes of an answer's token in `generations/`: its text, and its log-probability to four digits."""

TOKEN_ID_BYTES = 4
"""Bytes of a token in the stored answers of the teacher."""


@dataclass(frozen=True)
class Cost:
    """The cost of a run. A figure is NaN if some part of it is not known."""

    steps: float = math.nan
    tokens: float = math.nan
    """Tokens that go through the student in training, without padding; tokens of plain text count too."""
    memory: float = math.nan
    """Bytes of one device while it trains, as `training_memory` counts."""
    disk: float = math.nan
    """Bytes on disk after it: its weights, and its answers to the evaluation sets."""
    checkpoints: float = math.nan
    """Further bytes on disk while it trains: the best epoch's checkpoint, the two latest, and the next one as
    it is written, with the optimiser's moments and the average of the weights, if there is one."""


@dataclass(frozen=True)
class Once:
    """Work that several runs share."""

    what: str
    cost: Cost
    done: bool = False
    """Whether it is known to be done."""


class Estimator:
    """Estimates the cost of runs from their configurations and from the `facts` about models and data.

    It assumes that answers are on average as long as the responses of the training data, or as long as they
    may be if that is shorter. The model reads a prompt once for all its answers.
    """

    def __init__(self) -> None:
        self.facts = Facts()
        self._of_settings: dict[str, Cost] = {}
        """The costs of fine-tunings, by their settings: most runs of a sweep share them."""

    def run(self, plan: Plan) -> Cost:
        """Returns the cost of a run by itself, with all shared work done.

        Raises:
            InputError: if its objective is refused.
        """
        text, batch_size = plan.text, plan.data_settings.batch_size
        student = self.facts.skeleton(plan, "student")
        teacher = self.facts.skeleton(plan, "teacher") if plan.asks_teacher else None
        steps = _steps(plan.length, self._rows(plan, "train"), batch_size)
        rows, data = steps * (text.rows_per_step or batch_size), self._lengths(plan, "train")
        of_answers = rows * text.answer_share * (data.prompt + self._answer(plan, text))
        return Cost(
            steps=steps,
            tokens=rows * (1 - text.answer_share) * data.row
            + of_answers
            + steps * batch_size * self._plain_row(plan),
            memory=_memory(plan, student, teacher, body=text.from_student or not _is_cached(plan)),
            disk=_bytes(student) + self._answers_on_disk(plan),
            checkpoints=4 * _checkpoint(plan, student) if steps != 0 else 0.0,
        )

    def shared(self, plan: Plan) -> dict[str, Once]:
        """Returns the work that the run shares with other runs, by the key that identifies the work."""
        works = self._fine_tunings(plan)
        from_teacher = plan.text.from_teacher
        if not (plan.asks_teacher or from_teacher):
            return works
        name = plan.models["teacher"].path or "random weights"
        of_teacher = _teacher(plan)
        made_from = f"{of_teacher} {plan.fingerprint(*_TEXT, *(['text'] if from_teacher else []))}"
        train, lengths = self._rows(plan, "train"), self._lengths(plan, "train")
        response = self._answer(plan, plan.text) if from_teacher else lengths.response
        tokens = train * (lengths.prompt + response)
        if from_teacher:
            works[f"answers {made_from}"] = Once(
                f"the teacher's answers ({name})", self._cost_of_asking(plan, tokens, TOKEN_ID_BYTES * tokens)
            )
        if plan.asks_teacher and _is_cached(plan):
            states, head = _state_bytes(self.facts.skeleton(plan, "teacher"), plan.supply.states)
            computed = f"{of_teacher} {plan.trainer.precision} {plan.supply.states}"
            if not plan.compared:
                works[f"states {computed} {made_from}"] = Once(
                    f"the teacher's states in training ({name})",
                    self._cost_of_asking(plan, tokens, states * train * response),
                )
            valid, of_valid = self._rows(plan, "valid"), self._lengths(plan, "valid")
            works[f"states of valid {computed} {plan.fingerprint(*_TEXT)}"] = Once(
                f"the teacher's states at validations ({name})",
                self._cost_of_asking(plan, valid * of_valid.row, states * valid * of_valid.response + head),
            )
        return works

    def _fine_tunings(self, plan: Plan) -> dict[str, Once]:
        works = {}
        for role, tuning in plan.fine_tunings.items():
            directory, name = plan.fine_tuning_folder(role), plan.models[role].path or "random weights"
            settings = json.dumps(tuning.settings, sort_keys=True, default=str)
            if settings not in self._of_settings:
                self._of_settings[settings] = self.run(tuning)
            works[str(directory)] = Once(
                f"fine-tuning of the {role} ({name})",
                self._of_settings[settings],
                (directory / RESULT_FILE).exists(),
            )
        return works

    def kind(self, plan: Plan) -> str:
        """Returns a key of the student and the data: runs with the same key cost the same for each token."""
        return plan.fingerprint("model.student", *_TEXT)

    def _rows(self, plan: Plan, split: Use, name: str | None = None) -> float:
        data = plan.data_settings
        source = getattr(data, split) if name is None else data.test[name]
        limit = {"train": None, "valid": data.valid_rows, "test": data.test_prompts}[split]
        rows = self.facts.rows(source, data.fields, split)
        return rows if limit is None else _at_most(rows, limit)

    def _lengths(self, plan: Plan, split: Use) -> Lengths:
        return self.facts.lengths(plan, getattr(plan.data_settings, split), split)

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

    def _answers_on_disk(self, plan: Plan) -> float:
        """Bytes of `generations/`: of each answer with its log-probabilities, and of the prompt and its
        references for each seed and rung."""
        seeds, size = len(plan.sampling.seeds) * (1 + len(plan.sampling.rungs)), 0.0
        answers = seeds * plan.sampling.samples * self._answer(plan)
        for name, source in plan.data_settings.test.items():
            if source is not None:
                rows, lengths = self._rows(plan, "test", name), self.facts.lengths(plan, source, "test")
                size += rows * (seeds * TEXT_BYTES * lengths.row + ANSWER_BYTES * answers)
        return size

    def _cost_of_asking(self, plan: Plan, tokens: float, disk: float) -> Cost:
        """Returns the cost of running the teacher alone."""
        teacher, source = self.facts.skeleton(plan, "teacher"), plan.source("teacher")
        memory = (
            math.nan
            if teacher is None
            else weight_bytes(teacher, source.quantization)
            if source.quantization
            else bytes_on_a_device(teacher, source.device_map)
        )
        return Cost(0, tokens, memory, disk, checkpoints=0)


_TEXT = (
    *("model.tokenizer", "data.train", "data.valid", "data.valid_rows", "data.template", "data.max_length"),
    *("data.max_prompt_length", "data.truncation", "data.fields", "data.turns", "data.special_tokens"),
)
"""The settings that decide which rows of training and validation data there are, as token ids."""


def _teacher(plan: Plan) -> str:
    """Returns a key of the teacher's values: its settings, and how it is fine-tuned."""
    tuned = plan.fine_tuning_folder("teacher") if "teacher" in plan.fine_tunings else None
    return f"{tuned} {plan.fingerprint(*(f'model.teacher.{name}' for name in _VALUES_OF_TEACHER))}"


_VALUES_OF_TEACHER = ("path", "architecture", "layers", "dtype", "quantization")
"""The settings of a teacher that decide its values."""


def _is_cached(plan: Plan) -> bool:
    """Whether the teacher's states will be read from disk, as they are in a sweep by default."""
    teacher = plan.models.get("teacher")
    stored = teacher is not None and (teacher.sft or teacher.path)
    modes = ("cached",) if plan.text.from_student else ("cached", "auto")
    return bool(stored) and plan.supply.mode in modes


def _memory(
    plan: Plan, student: PreTrainedModel | None, teacher: PreTrainedModel | None, body: bool
) -> float:
    """Returns the memory of a device in a training, in bytes; NaN if a model is not known. The whole teacher
    counts if `body` is true and the objective needs a teacher. Otherwise its head alone counts."""
    if student is None or (teacher is None and plan.asks_teacher):
        return math.nan
    data = plan.data_settings
    share = -(-(plan.text.rows_per_step or data.batch_size) // _devices(plan.trainer))
    longest = max(plan.longest_texts("data", "text").values())
    tokens = min(data.micro_batch_size or share, share) * longest
    if data.tokens_per_batch is not None:  # a longer row goes alone
        tokens = min(max(data.tokens_per_batch, longest), share * longest)
    trained_by = teacher if plan.objective.needs_teacher else None
    quantization = None if teacher is None else plan.source("teacher").quantization
    memory = training_memory(
        student,
        trained_by,
        tokens,
        plan.trainer.precision,
        quantization,
        plan.optimizer,
        fused=plan.objective.uses_fused,
    )
    if plan.trainer.strategy == "fsdp" and (devices := _devices(plan.trainer)) > 1:
        memory = spread(memory, student, devices)
    head = 0 if teacher is None else int(_state_bytes(teacher)[1])
    if not body or trained_by is None:
        memory = replace(memory, teacher=head)
    return memory.total + _average(plan, student) + _gradient_sums(plan, student)


def _steps(length: Length, rows: float, batch_size: int) -> float:
    """Optimiser steps of a run."""
    if math.isnan(rows):
        known = length.max_epochs == -1 and length.max_steps > 0
        return length.max_steps if known else math.nan
    return length.over(math.ceil(rows / batch_size)).steps


def _bytes(model: PreTrainedModel | None, trained: bool = False) -> float:
    """Returns the bytes of all weights, or of the trained weights only."""
    if model is None:
        return math.nan
    return sum(weight.nbytes for weight in model.parameters() if weight.requires_grad or not trained)


def _checkpoint(plan: Plan, student: PreTrainedModel | None) -> float:
    """Returns the bytes of one state of a training: trained weights, the optimiser's states, an average."""
    if student is None:
        return math.nan
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    return _bytes(student, trained=True) + optimizer_bytes(plan.optimizer, trained) + _average(plan, student)


def _average(plan: Plan, student: PreTrainedModel | None) -> float:
    """Returns the bytes of an average of the trained weights, in float32; 0 without one."""
    if not any(isinstance(callback, AverageWeights) for callback in plan.callbacks.values()):
        return 0.0
    if student is None:
        return math.nan
    return sum(4.0 * weight.numel() for weight in student.parameters() if weight.requires_grad)


def _gradient_sums(plan: Plan, student: PreTrainedModel) -> int:
    """Returns the bytes of the float64 sums of gradients, which `sharing=micro_batches` keeps; else 0."""
    if plan.data_settings.sharing != "micro_batches":
        return 0
    return sum(8 * weight.numel() for weight in student.parameters() if weight.requires_grad)


def _devices(trainer: Trainer) -> int:
    """Returns the number of devices that share out the rows of a step."""
    here = len(trainer.devices) if isinstance(trainer.devices, list) else int(trainer.devices)
    return here * int(getattr(trainer, "num_nodes", 1))


def _state_bytes(model: PreTrainedModel | None, code: str = EXACT) -> tuple[float, float]:
    """Returns the bytes of the last hidden state of one position as `code` writes it, and of the head."""
    if model is None:
        return math.nan, math.nan
    head: Any = model.get_output_embeddings()
    return bytes_of_position(code, head.weight.shape[1], head.weight.dtype), head.weight.nbytes


def _at_most(value: float, most: float) -> float:
    """Returns the smaller of both numbers; NaN if `value` is NaN."""
    return value if math.isnan(value) else min(value, most)
