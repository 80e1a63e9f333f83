"""The entry point of `amid cache`."""

from omegaconf import DictConfig

from amid.config.compose import as_dict
from amid.errors import InputError
from amid.experiment.fine_tuning import with_prepared_models
from amid.experiment.plan import Plan
from amid.experiment.run import run_experiment, supply_teacher, supply_text
from amid.tracking.progress import silence_bars
from amid.training.devices import one_device, use_threads
from amid.training.precision import announce_slow_bfloat16


def check(cfg: DictConfig) -> Plan:
    """Checks what needs no row of the data and no weight of the teacher; returns the plan.

    Raises:
        InputError: see `run`.
    """
    settings = as_dict(cfg)
    models = {name: node for name, node in settings["model"].items() if name != "student"}
    plan = Plan({**settings, "model": models}, trains=False)
    if plan.supply.mode != "cached":
        raise InputError("amid cache writes the states that teacher=cached reads; leave out teacher=")
    if "teacher" not in plan.models:
        raise InputError("model.teacher=null: there are no states to write; give model.teacher.path")
    plan.check_at_once()
    plan.check_inputs()
    return plan


def run(cfg: DictConfig) -> None:
    """Writes the states of `model.teacher` at the counted positions of the training and validation data.

    It fine-tunes the teacher first if the pair asks for it. With text=teacher it first writes the teacher's
    answers, then the states of these answers. It keeps what is already written.

    Raises:
        InputError: if `teacher` is not `cached`, teacher or data cannot be used, or the disk is too full.
    """
    silence_bars()
    plan = check(cfg)
    use_threads(plan.threads)
    one_device(plan.trainer)
    data = plan.data()
    data.announce_cuts(["train", "valid"])  # reads the rows: a mistake in one comes before any line
    data.announce_template()
    announce_slow_bfloat16(plan.trainer, plan.models)
    plan = with_prepared_models(plan, data, run_experiment)
    supply_text(plan, data)
    supply_teacher(plan, data, [data.train_tokens, data.valid_tokens], with_student_text=False)
