"""One run, from its plan to its result: prepare, train, score, record."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel

from amid.config.run_settings import recorded_hash
from amid.console import announce
from amid.data import InstructionData
from amid.data.tokens import Tokens
from amid.distributed import ranks
from amid.errors import InputError
from amid.experiment.evaluation import (
    Evaluation,
    ValidationScore,
    announce_unread,
    check_metrics,
    evaluate_sets,
)
from amid.experiment.fine_tuning import course_over_rows, with_prepared_models
from amid.experiment.plan import Plan, made_by_name
from amid.experiment.record import finished_run, versions, write_config
from amid.generation.sampling import Sampling
from amid.models.counted_states import check_takes_packed
from amid.models.lora import merge, save_adapters
from amid.models.saving import save as save_model
from amid.models.source import ModelSource
from amid.models.vocabulary import shared_vocabulary
from amid.results import ADAPTER, BEST, CHECKPOINTS, RunResult, Score, save, sums_of_run
from amid.settings.together import check_shares
from amid.teacher.signals import Teacher
from amid.text import TeacherText
from amid.tracking import wandb_runs as tracking
from amid.training.checkpoints import forget_states
from amid.training.devices import of_trainer, one_device, use_threads
from amid.training.length import Course
from amid.training.module import DistillationModule, Optimisation
from amid.training.precision import announce_slow_bfloat16
from amid.training.process_memory import free_gpu_memory
from amid.training.resume import last_checkpoint
from amid.training.trainer import Trained, Training

FEW_STEPS = 20
"""A training with fewer steps than this announces its length."""


class _Silent(Logger):
    """The logger of all ranks but the first: some callbacks refuse a training without a logger."""

    name = version = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs nothing."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Logs nothing."""


def run_experiment(plan: Plan, directory: Path, labels: Mapping[str, Any]) -> RunResult:
    """Trains and scores one student, unless `directory` already holds the result of this plan.

    An unfinished run of the same configuration resumes from its last checkpoint. A run that diverges ends
    there: its result has the step and no scores.

    Args:
        plan: the checked plan of the run.
        directory: the folder of the run.
        labels: the labels of the run in tables: method, model, data, divergence, assistant; for the
            fine-tuning of another run's model also its `role`.

    Raises:
        InputError: for data or models that do not fit, or a directory with a run of another configuration.
    """
    use_threads(plan.threads)
    check_shares(vars(plan.data_settings), ranks.number())
    finished = ranks.from_first(lambda: finished_run(directory, plan))
    if finished is not None:
        return finished
    labels = {**labels, **plan.labels}
    one_device(plan.trainer)
    plan.sampling.check_installed()
    loggers = _loggers(plan, directory) if ranks.is_first() else [_Silent()]
    prepared = prepare(plan, quiet="role" in labels)  # the run that a fine-tuning is for says the same
    last = last_checkpoint(directory)
    ranks.from_first(lambda: write_config(prepared.plan, directory))
    tracking.begin(loggers, labels, prepared.plan.settings)
    trained = train(prepared, directory, loggers, last)
    evaluation = score(prepared, trained, directory, loggers)
    return ranks.from_first(lambda: record(prepared, trained, evaluation, directory, labels, loggers))


def _loggers(plan: Plan, directory: Path) -> list[Logger]:
    """The loggers of a run, which go on where an earlier part of the same run ended."""
    begun_before = recorded_hash(directory) == plan.key
    settings = tracking.going_on(plan.loggers, directory) if begun_before else plan.loggers
    return [*made_by_name("logger", settings).values()]


@dataclass(frozen=True)
class Prepared:
    """The parts that a run is trained and scored with."""

    plan: Plan
    """The plan with the models that were prepared for it."""
    data: InstructionData
    teacher: Teacher | None
    course: Course
    module: DistillationModule
    timings: dict[str, float]
    """Seconds of each part of the run so far."""


def prepare(plan: Plan, quiet: bool) -> Prepared:
    """Reads the data, and loads the models, fine-tuned if the settings ask for it.

    Args:
        plan: the plan of the run.
        quiet: whether to print nothing about the data.

    Raises:
        InputError: for data or models that do not fit.
    """
    timings: dict[str, float] = {}
    # All that the user may have written wrong is read before anything is announced or trained.
    with _timed(timings, "load"):
        data = _read_data(plan, quiet)
    with _timed(timings, "prepare"):
        plan = with_prepared_models(plan, data, run_experiment)
        supply_text(plan, data)
    with _timed(timings, "load"):
        free_gpu_memory()
        L.seed_everything(plan.seed, workers=True, verbose=False)
        student = _student(plan, data)
    with _timed(timings, "teacher"):
        teacher = None
        if plan.asks_teacher:
            asked = [*([data.train_tokens] if plan.objective.needs_teacher else []), data.valid_tokens]
            teacher = supply_teacher(plan, data, asked, with_student_text=plan.text.from_student)
        L.seed_everything(plan.seed, workers=True, verbose=False)  # whatever was loaded before
    with _timed(timings, "load"):
        course = _course(plan, data)
        module = DistillationModule(
            student=student,
            teacher=teacher,
            objective=plan.objective,
            data=data,
            text=plan.text,
            optimisation=Optimisation(plan.optimizer, plan.scheduler, plan.clip_norm, course.steps),
            valid_score=_valid_score(data, plan.sampling),
            log_every_n_steps=plan.trainer.log_every_n_steps,
            shared_vocab=None if teacher is None else shared_vocabulary(teacher.vocabulary, student),
            schedule=plan.schedule,
        )
    return Prepared(plan, data, teacher, course, module, timings)


def train(prepared: Prepared, directory: Path, loggers: Sequence[Logger], last: Path | None) -> Trained:
    """Trains the student, from the checkpoint `last` on, and keeps its best weights."""
    plan = prepared.plan
    lightning = partial(plan.lightning, **of_trainer(plan.trainer))
    training = Training(prepared.course, plan.checkpoints, plan.callbacks.values(), lightning)
    trained = training.fit(prepared.module, prepared.data, directory, loggers, last)
    prepared.timings["train"] = trained.seconds
    if prepared.teacher is not None:
        prepared.teacher.to(torch.device("meta"))  # the answers to come need its memory, not the teacher
    return trained


def score(prepared: Prepared, trained: Trained, directory: Path, loggers: Sequence[Logger]) -> Evaluation:
    """Exports the student, and scores its answers to the evaluation sets; no scores where it diverged."""
    plan, data, student = prepared.plan, prepared.data, prepared.module.student
    evaluation = Evaluation({name: {} for name in data.test_examples}, {}, 0.0)
    if trained.diverged:
        return evaluation
    if plan.models["student"].lora is not None:
        base = plan.models["student"].path
        ranks.from_first(lambda: _whole(directory / ADAPTER, partial(save_adapters, student, base)))
    merge(student)
    tokenizer = data.encoder.template.tokenizer_of_model(data.encoder.tokenizer)
    ranks.from_first(lambda: _whole(directory / BEST, partial(save_model, student, tokenizer)))
    prepared.module.to(trained.trainer.strategy.root_device)
    try:
        evaluation = evaluate_sets(
            student,
            data.tokenizer,
            data.test_examples,
            data.encoder,
            plan.sampling,
            data.metrics,
            data.pass_at,
            directory / "generations",
            {"config": plan.key, "student": ModelSource(str(directory / BEST)).fingerprint()},
            trained.trainer.precision_plugin.forward_context,
        )
        prepared.timings["evaluate"] = evaluation.seconds
    except FloatingPointError as error:
        announce(f"{directory} diverged: {error}; it ends here")
        trained.figures["diverged_step"] = trained.figures["steps"]
        ranks.from_first(lambda: shutil.rmtree(directory / "generations"))
    _log_scores(loggers, evaluation.scores)
    return evaluation


def record(
    prepared: Prepared,
    trained: Trained,
    evaluation: Evaluation,
    directory: Path,
    labels: Mapping[str, Any],
    loggers: Sequence[Logger],
) -> RunResult:
    """Writes the result, and deletes the checkpoints that a run would go on from."""
    result = RunResult(
        name=directory.name,
        labels=dict(labels),
        config_hash=prepared.plan.key,
        seed=prepared.plan.seed,
        scores=evaluation.scores,
        ladders=evaluation.ladders,
        training=trained.figures | (prepared.teacher.lost if prepared.teacher is not None else {}),
        timings=prepared.timings,
        versions=versions(),
        files=sums_of_run(directory),
    )
    save(result, directory)
    forget_states(directory / CHECKPOINTS)
    tracking.conclude(loggers, result, directory / "generations")
    return result


@contextlib.contextmanager
def _timed(timings: dict[str, float], part: str) -> Iterator[None]:
    """Adds the seconds that its block takes to the timing of a part."""
    started = time.perf_counter()
    yield
    timings[part] = timings.get(part, 0.0) + time.perf_counter() - started


def _read_data(plan: Plan, quiet: bool) -> InstructionData:
    """The data of a run, read and checked.

    Raises:
        InputError: for a row that cannot be read, a metric that cannot score the references, or a schedule
            that is longer than the training.
    """
    plan.check_inputs()
    data = plan.data()
    plan.check_rates(course_over_rows(plan, data).steps)
    answered = {"data.valid": data.valid_examples[: data.valid_prompts]} | data.test_examples
    _check_prompts(plan, data)
    check_metrics(data.metrics, answered)
    _ = data.plain_tokens
    if not quiet:
        data.announce_template()
        data.announce_cuts()
        announce_unread(data.metrics, answered)
    announce_slow_bfloat16(plan.trainer, plan.models)
    return data


def _student(plan: Plan, data: InstructionData) -> PreTrainedModel:
    """Loads the student; with trainer.strategy=fsdp only the first rank has the values of its weights.

    Raises:
        InputError: on all ranks, if it cannot be loaded, or does not keep packed rows apart.
    """
    source = plan.source("student")
    loaded: list[PreTrainedModel] = []

    def load() -> None:
        loaded.append(source.load(data.tokenizer, trained=True))
        if data.packing:
            check_takes_packed(loaded[0])

    if plan.trainer.strategy != "fsdp":
        load()
    else:
        ranks.from_first(load)
    return loaded[0] if loaded else source.load(data.tokenizer, trained=True, values=False)


def _course(plan: Plan, data: InstructionData) -> Course:
    """Returns the course of a run; prints a line if its steps are few, or fewer than `trainer.max_steps`."""
    course = plan.length.over(len(data.train_dataloader()))
    if course.steps < plan.length.max_steps:
        most = plan.length.max_steps
        announce(f"trainer.max_steps={most} is not reached: {plan.length.in_words(course)}")
    elif course.steps < FEW_STEPS:
        announce(f"Few steps: {plan.length.in_words(course)}")
    return course


def _valid_score(data: InstructionData, sampling: Sampling) -> ValidationScore | None:
    """Returns the score of the answers at validations, by `data.valid_metric`; None if there is none."""
    if data.valid_metric is None:
        return None
    examples = data.valid_examples[: data.valid_prompts]
    return ValidationScore(
        data.valid_metric,
        data.metrics[data.valid_metric],
        [data.encoder.prompt(example) for example in examples],
        [list(example.outputs) for example in examples],
        sampling,
        data.answer_group_size,
    )


def _check_prompts(plan: Plan, data: InstructionData) -> None:
    """Checks that rows which a model is to answer have a prompt.

    Raises:
        InputError: for plain text.
    """
    what = "has plain text (rows with text alone), which has no prompt to answer; use rows with questions, or"
    written = plan.text.from_student or isinstance(plan.text, TeacherText)
    if written and any(example.is_text for example in data.train_examples):
        raise InputError(f"data.train {what} text=data")
    answered = () if data.valid_metric is None else data.valid_examples[: data.valid_prompts]
    if any(example.is_text for example in answered):
        raise InputError(f"data.valid {what} data.valid_metric=null checkpoint=loss")


def supply_text(plan: Plan, data: InstructionData) -> None:
    """Gives the text of a plan the training set; if the text is the teacher's, the set holds its answers.

    Raises:
        InputError: see `TeacherText.training_set`.
    """
    text = plan.text
    if isinstance(text, TeacherText):
        answered = text.training_set(
            data.train_tokens,
            plan.source("teacher"),
            data.tokenizer,
            one_device(plan.trainer),
            plan.trainer.precision,
            data.cache_dir,
        )
        data.train_on(answered)
    text.begin(tokens=data.train_tokens)


def supply_teacher(
    plan: Plan, data: InstructionData, asked: Sequence[Tokens], with_student_text: bool
) -> Teacher:
    """The teacher of a plan, prepared already, for the rows `asked` of `data`: live, or from its cache.

    Raises:
        InputError: see `TeacherSupply.teacher`.
    """
    steps_of_all = len(data.train_dataloader())
    return plan.supply.teacher(
        plan.source("teacher"),
        data.tokenizer,
        asked,
        fabric=one_device(plan.trainer),
        precision=plan.trainer.precision,
        passes=plan.length.over(steps_of_all).steps / steps_of_all,
        with_student_text=with_student_text,
    )


def _log_scores(loggers: Sequence[Logger], scores: Mapping[str, Mapping[str, Score]]) -> None:
    means = {
        f"test/{name}/{metric}": score.mean for name, by in scores.items() for metric, score in by.items()
    }
    for logger in loggers:
        logger.log_metrics(means)
        logger.save()
        logger.finalize("success")


def _whole(directory: Path, write: Callable[[Path], None]) -> None:
    """Has a function write a folder that appears whole or not at all."""
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    shutil.rmtree(directory, ignore_errors=True)
    part.rename(directory)
