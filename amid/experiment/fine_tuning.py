"""Teacher and student before a run: fine-tuned on its data where the pair says so, once for all runs."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amid.console import announce
from amid.data import InstructionData
from amid.distributed import ranks
from amid.errors import Damaged, InputError
from amid.experiment.plan import Plan
from amid.files import only_writer
from amid.models.counted_states import check_takes_packed
from amid.results import BEST, REMEDY, RESULT_FILE, RunResult, check_student, load
from amid.tracking.status import PREPARING, record_status, watched
from amid.training.devices import one_device
from amid.training.length import Course

Run = Callable[[Plan, Path, Mapping[str, Any]], RunResult]
"""A function that trains and records the run of a plan, as `amid.experiment.run.run_experiment` does."""


def with_prepared_models(plan: Plan, data: InstructionData, run: Run) -> Plan:
    """Returns the plan with fine-tuned models in place of the models that are to be fine-tuned first.

    `run` makes a missing model once, in an ordinary supervised run. Its folder in `prepared_dir` is named by
    the hash of its configuration. Other processes wait for it.

    A student with adapters is trained with adapters both times. The fine-tuning merges its adapters at its
    end, and the run adds new ones.

    Raises:
        InputError: if a fine-tuning diverged, its schedule does not fit its steps, or the student does not
            take packed rows, which is known before its teacher is fine-tuned.
    """
    courses = {role: course_over_rows(tuning, data) for role, tuning in plan.fine_tunings.items()}
    for role, course in courses.items():
        tuning = plan.fine_tunings[role]
        tuning.check_rates(course.steps)
        one_device(tuning.trainer, f"{tuning.at}trainer")
    given = plan
    for role, course in courses.items():
        plan = plan.with_model(role, _fine_tuned(given, role, course, data, run))
    return plan


def course_over_rows(plan: Plan, data: InstructionData) -> Course:
    """Returns the course of a run or a fine-tuning on all training data, before the data are tokenised."""
    return plan.length.over(-(-len(data.train_examples) // plan.data_settings.batch_size))


def forget_damaged(directory: Path) -> None:
    """Deletes a fine-tuned model if its files are damaged, so that it is made again."""
    try:
        if (directory / RESULT_FILE).exists():
            result = load(directory)
            if result.diverged_step is None:
                check_student(directory, result, REMEDY)
    except Damaged as error:
        announce(f"{str(error).removesuffix(f'; {REMEDY}')}: the model is made again")
        shutil.rmtree(directory)
        directory.mkdir()


def _fine_tuned(plan: Plan, role: str, course: Course, data: InstructionData, run: Run) -> Path:
    """The folder of the fine-tuned model, which is made where it is not there."""
    tuning, directory = plan.fine_tunings[role], plan.fine_tuning_folder(role)
    directory.mkdir(parents=True, exist_ok=True)
    record_status(note=PREPARING, part=f"fine-tuning of the {role}")
    with ranks.first_in(lambda: only_writer(directory, f"the fine-tuned {role}")):
        ranks.from_first(lambda: forget_damaged(directory))
        if not ranks.from_first((directory / RESULT_FILE).exists):
            if role == "teacher" and data.packing and "student" in plan.models:
                check_takes_packed(plan.source("student").load(data.tokenizer))  # not only once it is trained
            length = tuning.length.in_words(course)
            announce(f"Fine-tuning the {role} first, once, in {directory}: {length}")
            with ranks.first_in(lambda: watched(directory)):
                run(tuning.logging_to(directory), directory, {"method": "sft", "role": role})
        step = ranks.from_first(lambda: load(directory).diverged_step)
    record_status(note=PREPARING)
    if step is not None:
        raise InputError(
            f"the {role}'s fine-tuning in {directory} diverged at step {step}; "
            f"lower model.{role}.sft.optimizer.lr"
        )
    return directory / BEST
