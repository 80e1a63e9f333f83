"""Checks of a plan that need no row of its data and no weight of its models."""

import contextlib
import re
from collections.abc import Iterator

from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from amid.distributed import ranks
from amid.errors import InputError, choose_one
from amid.experiment.plan import Plan
from amid.measures import VALIDATION
from amid.models.layers import decoder_layers
from amid.models.limits import check_lengths, check_reads_forwards
from amid.models.source import load_tokenizer
from amid.models.vocabulary import check_same_tokens, output_rows
from amid.text import on_student_text
from amid.training.averaging import AverageWeights
from amid.training.checkpoints import Checkpoints
from amid.training.low_bit import adamw_8bit

_MANY_STEPS = 10**6
"""Taken for the steps of a training while its data are not read."""

_NOT_TAKEN = {
    "WeightAveraging": "averages the teacher too, and its average is not scored; use callbacks=ema",
    "StochasticWeightAveraging": "has learning rates of its own, and no validation; use callbacks=swa",
    "GradientAccumulationScheduler": "needs automatic optimisation; use data.micro_batch_size",
    "LearningRateFinder": "needs automatic optimisation; compare rates with -m optimizer.lr=1e-4,1e-3",
    "BatchSizeFinder": "changes the batch size; use data.tokens_per_batch, which bounds the memory",
    "ModelPruning": "renames the student's weights; use model.student.layers for a smaller student",
}
"""Callbacks of Lightning that cannot work in a run, each with the reason and what to use."""

_LOGGING = (of_lightning.DeviceStatsMonitor, of_lightning.LearningRateMonitor)
"""Callbacks of Lightning that refuse a training without a logger."""


def check_parts(plan: Plan) -> None:
    """Checks the parts of a run that need neither data nor models, and the fine-tunings of its models.

    Raises:
        InputError: for a setting outside its range, or settings that do not fit.
    """
    _check_objective(plan)
    most = plan.length.max_steps
    plan.check_rates(most if most > 0 else _MANY_STEPS)
    check_strategy(plan)
    if not isinstance(plan.checkpoints, Checkpoints):
        raise InputError(
            f"{plan.at}checkpoint._target_ makes a {type(plan.checkpoints).__name__}; use "
            "amid.training.checkpoints.Checkpoints or a class derived from it"
        )
    if plan.schedule is not None:
        plan.schedule.begin(plan.objective)
    if plan.asks_teacher:
        plan.supply  # noqa: B018
    check_callbacks(plan)
    plan.sampling  # noqa: B018
    for fine_tuning in plan.fine_tunings.values():
        check_parts(fine_tuning)


def check_strategy(plan: Plan) -> None:
    """Raises InputError for sums or states of an optimiser that the strategy cannot have."""
    if plan.trainer.strategy == "fsdp" and plan.data_settings.sharing == "micro_batches":
        raise InputError(
            f"{plan.at}data.sharing=micro_batches with {plan.at}trainer.strategy=fsdp: FSDP sums gradients "
            "in the order of the devices; use trainer.strategy=ddp, or data.sharing=rows"
        )
    if plan.trainer.strategy == "fsdp" and getattr(plan.optimizer, "func", None) is adamw_8bit:
        raise InputError(
            f"{plan.at}optimizer=adamw_8bit with {plan.at}trainer.strategy=fsdp: the scales of 8-bit moments "
            "cannot be divided anew for other devices; use optimizer=adamw, or trainer.strategy=ddp"
        )


def _check_objective(plan: Plan) -> None:
    """Whether the text and the parts of a step fit the objective."""
    objective, text, data = plan.objective, plan.text, plan.data_settings
    if text.from_student and on_student_text(objective) is None:
        raise InputError(
            f"objective={objective!r} needs labels, and the student's own text gives none; use text=data or "
            "text=teacher, or an objective with a teacher"
        )
    if objective.uses_sampling and not text.sampled:
        raise InputError(
            f"objective={objective!r} needs text with the probabilities that it was sampled with; use "
            "text=rollouts"
        )
    if objective.additive or data.mean == "micro_batch":
        return
    devices = plan.trainer.devices if ranks.number() == 1 else ranks.number()
    whole = {"data.micro_batch_size": None, "data.tokens_per_batch": None, "trainer.devices": 1}
    given = (data.micro_batch_size, data.tokens_per_batch, devices)
    for (key, needed), value in zip(whole.items(), given, strict=True):
        if value != needed and not (isinstance(value, list) and len(value) == 1):
            raise InputError(
                f"{key}={value} cuts a step into parts, but {objective!r} is no sum of parts; use "
                f"{key}={'null' if needed is None else needed}, objective.maximum=token, or "
                "data.mean=micro_batch"
            )


def check_callbacks(plan: Plan) -> None:
    """Checks that the user's own callbacks are Lightning callbacks, and watch a measure that exists.

    Raises:
        InputError: naming the callback, and what there is to watch.
    """
    known = [of.logged for of in VALIDATION.values() if plan.asks_teacher or of.taken != "with a teacher"]
    if (metric := plan.data_settings.valid_metric) is not None:
        known += [f"valid/{metric}", f"valid/{metric}_best"]
    for name, callback in plan.callbacks.items():
        if not isinstance(callback, Callback):
            raise InputError(
                f"callbacks.{name} is a {type(callback).__name__}; it must be a lightning.pytorch.Callback"
            )
        _check_taken(name, callback)
        if isinstance(callback, _LOGGING) and not plan.loggers:
            raise InputError(f"callbacks.{name} logs, and the run has no logger; choose logger=csv")
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or monitor in known:
            continue
        if isinstance(callback, of_lightning.EarlyStopping) and monitor.startswith("train/"):
            raise InputError(
                f"callbacks.{name}.monitor={monitor}: early stopping decides at validations, and a resumed "
                f"run does not know the steps before it{choose_one(monitor, known)}"
            )
        if not monitor.startswith("train/"):
            raise InputError(
                f"callbacks.{name}.monitor={monitor} is not measured{choose_one(monitor, known)}"
            )
    averages = [name for name, callback in plan.callbacks.items() if isinstance(callback, AverageWeights)]
    if len(averages) > 1:
        raise InputError(
            f"callbacks.{averages[0]} and callbacks.{averages[1]} both average the student's weights; use one"
        )
    if averages and plan.trainer.strategy == "fsdp":
        raise InputError(
            f"callbacks.{averages[0]} averages whole weights, which trainer.strategy=fsdp spreads over the "
            "devices; use trainer.strategy=ddp, or leave the callback out"
        )


def _check_taken(name: str, callback: Callback) -> None:
    """Refuses a callback that would fail later, or whose hooks are not called."""
    for kind, reason in _NOT_TAKEN.items():
        if isinstance(callback, getattr(of_lightning, kind)):
            raise InputError(f"callbacks.{name}: Lightning's {kind} {reason}")
    if is_overridden("on_before_zero_grad", callback):
        raise InputError(
            f"callbacks.{name}: on_before_zero_grad of {type(callback).__name__} is called by automatic "
            "optimisation alone; use on_before_optimizer_step or on_train_batch_end"
        )


def check_models(plan: Plan) -> None:
    """Checks that the models of a run are there, can read its texts, and have its tokenizer.

    Raises:
        InputError: naming the model.
    """
    tokenizer, models = plan.tokenizer, plan.models
    shared = getattr(plan.objective, "shared_vocab", None)
    for role in models:
        with named_by_key(role):
            source = plan.source(role)
            skeleton = source.skeleton(source.config(tokenizer))
            source.check_rows(skeleton, tokenizer)
        if role == "student" and plan.trainer.strategy == "fsdp":
            decoder_layers(skeleton)
        name = f"the {role} {source.path or ''}".strip()
        check_reads_forwards(name, skeleton)
        rows = output_rows(skeleton)
        if shared is not None and shared > rows:
            raise InputError(
                f"objective.shared_vocab={shared} is more than the {rows} tokens that {name} has logits for; "
                f"use {rows} at most, or null"
            )
        reads = ("data", "text", *(("generation",) if role == "student" else ()))
        check_lengths(name, skeleton, plan.longest_texts(*reads))
        if source.path is not None:
            with named_by_key(role):
                own = load_tokenizer(source.path)
            check_same_tokens(role, tokenizer, own)


@contextlib.contextmanager
def named_by_key(role: str) -> Iterator[None]:
    """Has a mistake in the settings of a model name them by their keys, such as `model.teacher.path`."""
    try:
        yield
    except InputError as error:
        text = str(error).replace("model.student.layers", "model layers")
        text = re.sub(r"^tokenizer (?=path=)", f"the tokenizer of model.{role}.", text)
        raise InputError(re.sub(r"^model (?=[a-z_]+[=.])", f"model.{role}.", text)) from error
