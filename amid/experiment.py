"""One run, from its configuration to its result: prepare, train, score, record."""

import copy
import logging
import os
import pickle
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid import __version__, tracking
from amid.allocator import forget_peak_memory, peak_memory
from amid.config import check_seed, config_hash
from amid.data import InstructionData
from amid.errors import InputError
from amid.evaluation import check_metrics, evaluate_sets
from amid.lora import merge
from amid.models import check_same_tokens, load_tokenizer, shared_vocabulary
from amid.module import DistillationModule, Diverged
from amid.monitor import watched
from amid.precision import announce_slow_bfloat16
from amid.progress import LOSSES, StatusRecords, announce, progress
from amid.results import METRICS, RunResult, Score, load, save
from amid.schedule import Schedule
from amid.teacher import Teacher, TeacherSupply
from amid.text import TeacherText, Text, on_student_text

BEST = Path("checkpoints") / "best"
"""Where a finished run keeps its student, as `save_pretrained` writes it."""

Config = dict[str, Any]


def run_experiment(cfg: Config, directory: Path, labels: Mapping[str, Any]) -> RunResult:
    """Trains and scores one student, unless `directory` already holds the result of this configuration.

    An unfinished run of the same configuration goes on from its last epoch. One that diverges ends there: its
    result says at which step, and has no scores.

    Args:
        cfg: a resolved configuration of conf/train.yaml.
        directory: of the run.
        labels: what tables call the run: method, model, data, divergence, assistant.

    Raises:
        InputError: for settings that do not fit, or a directory with a run of another configuration.
    """
    check_seed(cfg["seed"])
    if cfg["threads"] is not None:
        torch.set_num_threads(cfg["threads"])
    cfg = copy.deepcopy(cfg)
    objective = instantiate(cfg["objective"])
    text: Text = instantiate(cfg["text"])
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
    for limit in ("micro_batch_size", "tokens_per_batch"):
        if not objective.additive and cfg["data"][limit] is not None:
            raise InputError(
                f"data.{limit}={cfg['data'][limit]} cuts a step into parts, but {objective!r} is no sum of "
                f"parts; use data.{limit}=null, or objective.maximum=token"
            )
    if not (objective.needs_teacher or text.from_teacher):
        cfg["model"].pop("teacher", None)
    key = config_hash(cfg)
    finished = _finished(directory, key)
    if finished is not None:
        announce(f"{directory} is finished already")
        return finished
    _check_trainer(cfg["trainer"], "trainer")
    _check_optimizer(cfg["optimizer"])
    schedule: Schedule | None = instantiate(cfg.get("schedule"))
    if schedule is not None:
        schedule.begin(objective)
    assistant = getattr(objective, "assistant", None)
    labels = {
        **labels,
        "order": getattr(objective, "order", None),
        "alpha": getattr(assistant, "alpha", None),
        "lam": getattr(assistant, "lam", None),
    }

    # All that the user may have written wrong is read before anything is announced or trained.
    started = time.perf_counter()
    tokenizer = instantiate(cfg["model"]["tokenizer"])
    data: InstructionData = instantiate(cfg["data"], tokenizer=tokenizer)
    tokenizer = data.tokenizer
    sampling = instantiate(cfg["generation"])
    evaluation_sets = data.test_examples
    valid = data.valid_examples[: data.valid_prompts]
    check_metrics(data.metrics, {"data.valid": valid} | evaluation_sets)
    _check_monitor(cfg["checkpoint"]["monitor"], data.valid_metric)
    plain_text = None if data.plain_tokens is None else data.plain_batch
    if "role" not in labels:  # the run that a fine-tuning is for has said it of the same data
        data.announce_cuts()
    announce_slow_bfloat16(cfg)
    timings = {"load": time.perf_counter() - started}

    started = time.perf_counter()
    with_prepared_models(cfg, data)
    supply_text(cfg, text, tokenizer, data)
    timings["prepare"] = time.perf_counter() - started

    started = time.perf_counter()
    L.seed_everything(cfg["seed"], workers=True, verbose=False)
    student = instantiate(cfg["model"]["student"]).load(tokenizer)
    timings["load"] += time.perf_counter() - started

    started = time.perf_counter()
    teacher, shared_vocab = None, None
    if objective.needs_teacher:
        teacher = supply_teacher(cfg, tokenizer, data, with_student_text=text.from_student)
        shared_vocab = shared_vocabulary(teacher.vocabulary, student)
        L.seed_everything(cfg["seed"], workers=True, verbose=False)  # however the teacher was had
    timings["teacher"] = time.perf_counter() - started

    started = time.perf_counter()
    module = DistillationModule(
        student=student,
        teacher=teacher,
        objective=objective,
        optimizer=instantiate(cfg["optimizer"]),
        scheduler=instantiate(cfg["scheduler"]),
        clip_norm=cfg["clip_norm"],
        tokenizer=tokenizer,
        valid_prompts=[data.encoder.prompt(example) for example in valid],
        valid_references=[list(example.outputs) for example in valid],
        valid_metric=data.valid_metric,
        metrics=data.metrics,
        sampling=sampling,
        log_every_n_steps=cfg["trainer"]["log_every_n_steps"],
        micro_batches=data.micro_batches,
        text=text,
        plain_text=plain_text,
        plain_text_weight=data.plain_text_weight,
        shared_vocab=shared_vocab,
        schedule=schedule,
    )
    timings["load"] += time.perf_counter() - started

    last = _last_checkpoint(directory)
    _write_config(cfg, directory, key)
    started = time.perf_counter()
    scores: dict[str, dict[str, Score]] = {name: {} for name in evaluation_sets}
    _keep_metrics(directory)
    loggers: list[Logger] = list(instantiate(cfg["logger"]).values())
    tracking.begin(loggers, labels, cfg)
    try:
        trainer, training = _fit(cfg, module, data, directory, loggers, last)
        timings["train"] = time.perf_counter() - started
    except Diverged as error:
        announce(f"{directory} diverged at {error}; it ends here")
        timings["train"] = time.perf_counter() - started
        training = {**module.before, **_figures(module), "diverged_step": float(error.step)}
    else:
        merge(student)
        _export(student, tokenizer, directory / BEST)
        started = time.perf_counter()
        module.to(trainer.strategy.root_device)
        try:
            scores = evaluate_sets(
                student,
                tokenizer,
                evaluation_sets,
                data.encoder,
                sampling,
                data.metrics,
                directory / "generations",
                trainer.precision_plugin.forward_context,
            )
        except FloatingPointError as error:
            announce(f"{directory} diverged: {error}; it ends here")
            training["diverged_step"] = training["steps"]
        timings["evaluate"] = time.perf_counter() - started
        _log_scores(loggers, scores)

    result = RunResult(
        name=directory.name,
        labels=labels,
        config_hash=key,
        seed=cfg["seed"],
        scores=scores,
        training=training,
        timings=timings,
        versions=versions(),
    )
    save(result, directory)
    for checkpoint in (directory / "checkpoints").glob("*.ckpt"):
        checkpoint.unlink()
    tracking.conclude(loggers, result, directory / "generations")
    return result


def with_prepared_models(cfg: Config, data: InstructionData) -> None:
    """Replaces each model of `cfg` that is to be fine-tuned first by the fine-tuned one.

    What is not there yet is made, once, by an ordinary supervised run in `prepared_dir`, in a folder named
    by the hash of its configuration; other processes wait for it.

    A student that is trained with adapters is so both times: in its fine-tuning, after which they are merged,
    and in the run, with new ones.

    Raises:
        InputError: if a model cannot be found, its tokenizer is not that of `data`, the teacher has adapters
            that nothing trains, or a fine-tuning's settings do not fit.
    """
    models = {role: cfg["model"][role] for role in ("teacher", "student") if cfg["model"].get(role)}
    if "teacher" in models and models["teacher"].get("lora") is not None and not models["teacher"].get("sft"):
        raise InputError(
            "model.teacher.lora is for the teacher's fine-tuning, and model.teacher.sft=null has none; "
            "set model.teacher.lora=null too"
        )
    for role, source in models.items():
        if source.get("path") is not None:
            check_same_tokens(role, data.tokenizer, load_tokenizer(source["path"]))
        if source.get("sft"):
            _check_trainer(source["sft"]["trainer"], f"model.{role}.sft.trainer")
            if source["sft"]["batch_size"] < 1:
                raise InputError(
                    f"model.{role}.sft.batch_size={source['sft']['batch_size']} must be at least 1"
                )
    for role, source in models.items():
        if source.get("sft"):
            cfg["model"][role] = prepared(source, role, _fine_tuned(cfg, role, len(data.train_examples)))


def prepared(source: Config, role: str, best: Path) -> Config:
    """The settings of a model that was fine-tuned from `source`, and lies in `best`."""
    kept = ("_target_", "dtype", *(("lora",) if role == "student" else ()))
    return {key: source[key] for key in kept if key in source} | {"path": str(best)}


def fine_tuning(cfg: Config, role: str) -> tuple[Config, Path]:
    """The supervised run that prepares a model of `cfg`, and the folder that it is kept in."""
    source = dict(cfg["model"][role])
    sft = source.pop("sft")
    metrics = cfg["data"].get("metrics") or {}
    if source.get("lora") is None:
        source["dtype"] = "float32"
    data = {
        **cfg["data"],
        "batch_size": sft["batch_size"],
        "micro_batch_size": sft["micro_batch_size"],
        "tokens_per_batch": sft["tokens_per_batch"],
        "seed": sft["seed"],
        "valid_prompts": 16,
        "metrics": {
            name: metric for name, metric in metrics.items() if name == cfg["data"].get("valid_metric")
        },
        "test": {},
        "test_prompts": None,
        "plain_text": None,
        "plain_text_weight": 1.0,
    }
    run = {
        "model": {"tokenizer": cfg["model"]["tokenizer"], "student": source},
        "data": data,
        "objective": {"_target_": "amid.losses.CrossEntropy"},
        "text": {"_target_": "amid.text.DataText"},
        "generation": {
            "_target_": "amid.generation.Sampling",
            "max_new_tokens": data["max_length"] - data["max_prompt_length"],
            "seeds": [sft["seed"]],
        },
        "logger": {},
        "threads": cfg["threads"],
        **{key: sft[key] for key in ("optimizer", "scheduler", "trainer", "checkpoint", "clip_norm", "seed")},
    }
    return run, Path(cfg["prepared_dir"]) / f"{role}-{config_hash(run)}"


def _fine_tuned(cfg: Config, role: str, rows: int) -> Path:
    """The folder of the model, fine-tuned on as many rows."""
    run, directory = fine_tuning(cfg, role)
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        if not (directory / "result.json").exists():
            length = _length(
                run["trainer"], -(-rows // run["data"]["batch_size"]), f"model.{role}.sft.trainer"
            )
            announce(f"Fine-tuning the {role} first, once, in {directory}: {length}")
            csv = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(directory)}
            run["logger"] = {"csv": csv | {"name": "", "version": ""}}
            with watched(directory):
                run_experiment(run, directory, {"method": "sft", "role": role})
        step = load(directory).diverged_step
    if step is not None:
        raise InputError(
            f"the {role}'s fine-tuning in {directory} diverged at step {step}; "
            f"lower model.{role}.sft.optimizer.lr"
        )
    return directory / BEST


def _length(trainer: Config, steps_of_all: int, key: str) -> str:
    """In words, the steps of a run and the setting that they come from; `key` is that of the trainer's."""
    steps, epoch = steps_of(trainer, steps_of_all), steps_of_epoch(trainer, steps_of_all)
    epochs = f"{steps / max(1, epoch):,.2f}".rstrip("0").rstrip(".")
    name = "max_steps" if steps == trainer["max_steps"] else "max_epochs"
    return f"{_count(f'{steps:,}', 'step')} ({_count(epochs, 'epoch')} of {epoch:,}); {key}.{name} sets this"


def _count(number: str, what: str) -> str:
    return f"{number} {what}" if number == "1" else f"{number} {what}s"


def supply_text(cfg: Config, text: Text, tokenizer: PreTrainedTokenizerBase, data: InstructionData) -> None:
    """Gives `text` the training set, with the answers of the teacher of `cfg` in it where `text` says so.

    Raises:
        InputError: see `TeacherText.training_set`.
    """
    if isinstance(text, TeacherText):
        answered = text.training_set(
            data.train_tokens,
            instantiate(cfg["model"]["teacher"]),
            tokenizer,
            _one_device(cfg),
            str(cfg["trainer"]["precision"]),
            data.cache_dir,
        )
        data.train_on(answered)
    text.begin(data.train_tokens)


def supply_teacher(
    cfg: Config,
    tokenizer: PreTrainedTokenizerBase,
    data: InstructionData,
    with_student_text: bool,
) -> Teacher:
    """The teacher of `cfg`, prepared already, for the training and validation data: live, or from its cache.

    Raises:
        InputError: see `TeacherSupply.teacher`.
    """
    settings = cfg["trainer"]
    steps_of_all = len(data.train_dataloader())
    supply: TeacherSupply = instantiate(cfg["teacher"])
    return supply.teacher(
        instantiate(cfg["model"]["teacher"]),
        tokenizer,
        [data.train_tokens, data.valid_tokens],
        fabric=_one_device(cfg),
        precision=str(settings["precision"]),
        passes=steps_of(settings, steps_of_all) / steps_of_all,
        with_student_text=with_student_text,
    )


def _one_device(cfg: Config) -> L.Fabric:
    """Where the teacher runs before the training."""
    settings = cfg["trainer"]
    devices = settings["devices"] if isinstance(settings["devices"], list) else 1
    return L.Fabric(accelerator=settings["accelerator"], devices=devices, precision=settings["precision"])


def steps_of(trainer: Config, steps_of_all: int) -> int:
    """The optimiser steps of a run whose training data are `steps_of_all`."""
    steps: list[int] = [trainer["max_epochs"] * steps_of_epoch(trainer, steps_of_all), trainer["max_steps"]]
    return min(n for n in steps if n >= 0)


def steps_of_epoch(trainer: Config, steps_of_all: int) -> int:
    """The optimiser steps of an epoch of a run whose training data are `steps_of_all`."""
    limit = trainer.get("limit_train_batches")
    if limit is None:
        return steps_of_all
    return int(limit * steps_of_all) if isinstance(limit, float) else min(limit, steps_of_all)


def _fit(
    cfg: Config,
    module: DistillationModule,
    data: InstructionData,
    directory: Path,
    loggers: Sequence[Logger],
    last: Path | None,
) -> tuple[L.Trainer, dict[str, float]]:
    """Trains, from the checkpoint `last` where there is one; leaves the best weights in the module."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    checkpoint = instantiate(
        cfg["checkpoint"],
        dirpath=str(directory / "checkpoints"),
        filename="best-epoch",
        save_last=True,
        enable_version_counter=False,
    )
    trainer: L.Trainer = instantiate(
        cfg["trainer"],
        callbacks=[checkpoint, progress(), StatusRecords(directory)],
        enable_progress_bar=sys.stdout.isatty(),
        logger=list(loggers),
        default_root_dir=str(directory),
    )
    try:
        if last is None:
            trainer.validate(module, datamodule=data, verbose=False)
        forget_peak_memory(trainer.strategy.root_device)
        started = time.perf_counter()
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        seconds = time.perf_counter() - started
        figures = _figures(module) | {"peak_memory": float(peak_memory(trainer.strategy.root_device))}
        best = checkpoint.best_model_path
        if module.validated_step != trainer.global_step:
            now = trainer.validate(module, datamodule=data, verbose=False)[0][checkpoint.monitor]
            then = checkpoint.best_model_score
            if then is None or (now >= float(then) if checkpoint.mode == "max" else now <= float(then)):
                best = ""
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    kept: dict[str, Any] = {"validation": module.validation}
    if best:
        kept = torch.load(best, map_location="cpu", weights_only=True)
        module.load_state_dict(kept["state_dict"])
    announce(f"  kept: {_in_words(kept, trainer.global_step, data.valid_metric)}")
    training = {
        **module.before,
        **kept["validation"],
        **figures,
        "response_tokens_per_second": module.response_tokens_here / seconds,
    }
    return trainer, training


def _in_words(kept: Mapping[str, Any], steps: int, metric: str | None) -> str:
    """Of which step the weights are that a run ends with, and how they did on the validation data."""
    validation: Mapping[str, float] = kept["validation"]
    text = f"step {kept.get('global_step', steps)} of {steps}, valid cross-entropy "
    text += f"{validation['valid_cross_entropy']:.3f}"
    if (score := validation.get(f"valid_{metric}")) is not None:
        text += f", {METRICS.get(str(metric), metric)} {score:.1f}"
    return text


def _figures(module: DistillationModule) -> dict[str, float]:
    """What the training so far consisted of, and the time of its steps in this process."""
    figures = {"steps": float(module.global_step), "response_tokens": float(module.response_tokens)}
    seconds = module.seconds_of_steps[1:] or module.seconds_of_steps
    return figures | ({"step_seconds": sum(seconds) / len(seconds)} if seconds else {})


def _log_scores(loggers: Sequence[Logger], scores: Mapping[str, Mapping[str, Score]]) -> None:
    means = {
        f"test/{name}/{metric}": score.mean for name, by in scores.items() for metric, score in by.items()
    }
    for logger in loggers:
        logger.log_metrics(means)
        logger.save()
        logger.finalize("success")


def _last_checkpoint(directory: Path) -> Path | None:
    """What a run that was begun before can go on from; one that was cut while it was written is removed."""
    path = directory / "checkpoints" / "last.ckpt"
    if not path.exists():
        if (directory / "config.yaml").exists():
            announce(f"{directory} was begun, and stopped before its first epoch ended: it starts over")
        return None
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        announce(f"{path} is damaged: the run starts over")
        path.unlink()
        return None
    announce(f"{directory} goes on after its last finished epoch")
    return path


def _finished(directory: Path, key: str) -> RunResult | None:
    previous, computed = directory / "config.yaml", (directory / "result.json", directory / "checkpoints")
    if previous.exists() and any(path.exists() for path in computed):
        old = str(OmegaConf.select(OmegaConf.load(previous), "hash"))
        if old != key:
            raise InputError(
                f"{directory} holds a run of another configuration (hash {old}, now {key}); "
                "choose another output_dir=, or delete the folder"
            )
    return load(directory) if (directory / "result.json").exists() else None


def _check_trainer(trainer: Config, key: str) -> None:
    """Refuses the trainer's settings, which are those of `key`, where they do not fit."""
    devices = trainer["devices"]
    if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise InputError(
            f"{key}.devices={devices}: a run is trained on one device; use {key}.devices=1 (or [2] for "
            "the third), and run several side by side"
        )
    if str(trainer["precision"]).startswith("16"):
        raise InputError(
            f"{key}.precision={trainer['precision']} would clip gradients before they are unscaled; "
            "use bf16-mixed or 32-true"
        )
    if trainer["max_epochs"] is None:
        raise InputError(
            f"{key}.max_epochs=null is no number of epochs; use -1 for as many as max_steps takes"
        )
    if trainer["max_epochs"] == -1 and trainer["max_steps"] == -1:
        raise InputError(f"{key}.max_epochs=-1 and {key}.max_steps=-1 never end; set one of them")


def _check_optimizer(optimizer: Config) -> None:
    try:
        instantiate(optimizer)([torch.nn.Parameter(torch.zeros(1))])
    except (HydraException, TypeError, ValueError) as error:
        given = ", ".join(f"{name}={value}" for name, value in optimizer.items() if not name.startswith("_"))
        raise InputError(f"optimizer: {optimizer['_target_']} does not take {given} ({error})") from error


def _check_monitor(monitor: str, valid_metric: str | None) -> None:
    known = [*LOSSES, *([f"valid/{valid_metric}"] if valid_metric else [])]
    if monitor not in known:
        raise InputError(
            f"checkpoint.monitor={monitor} is not measured (data.valid_metric={valid_metric}); "
            f"use one of {', '.join(known)}"
        )


def _write_config(cfg: Config, directory: Path, key: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / "config.yaml.part"
    OmegaConf.save(OmegaConf.create({"hash": key, "config": cfg}), part)
    os.replace(part, directory / "config.yaml")


def _keep_metrics(directory: Path) -> None:
    """Sets aside the metrics of the earlier part of a resumed run, which the logger would delete."""
    metrics = directory / "metrics.csv"
    if metrics.exists():
        n = len(list(directory.glob("metrics-*.csv")))
        metrics.rename(directory / f"metrics-{n}.csv")


def _export(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes model and tokenizer into a folder that appears whole or not at all."""
    part = directory.with_name(directory.name + ".part")
    student.save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(directory, ignore_errors=True)
    part.rename(directory)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = (
        "torch",
        "lightning",
        "transformers",
        "tokenizers",
        "rouge-score",
        "sacrebleu",
    )
    ours = {"python": platform.python_version(), "amid-distill": __version__}
    return ours | {name: version(name) for name in packages}
