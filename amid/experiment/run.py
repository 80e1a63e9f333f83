"""One run, from its configuration to its result: prepare, train, score, record."""

import copy
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid import __version__
from amid.config.data_files import check_files
from amid.config.identity import config_hash, contents_of, differences
from amid.config.run_settings import read_config, recorded_hash, write_settings
from amid.config.secrets import without_secrets
from amid.console import announce, shown
from amid.data import InstructionData
from amid.data.prompts import Encoder
from amid.data.tokens import Tokens
from amid.errors import InputError
from amid.experiment.evaluation import ValidationScore, announce_unread, check_metrics, evaluate_sets
from amid.experiment.fine_tuning import check_models, steps_of_all_rows, with_prepared_models
from amid.experiment.plan import Parts, parts_of
from amid.generation.sampling import Sampling
from amid.models.lora import merge
from amid.models.saving import save as save_model
from amid.models.source import ModelSource
from amid.models.vocabulary import shared_vocabulary
from amid.results import BEST, RESULT_FILE, RunResult, Score, load, save, sums_of_run
from amid.teacher.signals import Teacher
from amid.teacher.supply import TeacherSupply
from amid.text import TeacherText, Text
from amid.tracking import wandb_runs as tracking
from amid.training.checkpoints import FOLDER, last_checkpoint
from amid.training.learning_rate import check_rates
from amid.training.module import DistillationModule
from amid.training.precision import announce_slow_bfloat16
from amid.training.process_memory import free_gpu_memory
from amid.training.trainer import fit, length_in_words, loggers_of, one_device, steps_of, use_threads

Config = dict[str, Any]

FEW_STEPS = 20
"""Steps of a training below which its length is said."""


def run_experiment(cfg: Config, directory: Path, labels: Mapping[str, Any]) -> RunResult:
    """Trains and scores one student, unless `directory` already holds the result of this configuration.

    An unfinished run of the same configuration goes on from its last checkpoint. One that diverges ends
    there: its result says at which step, and has no scores.

    Args:
        cfg: a resolved configuration of conf/train.yaml.
        directory: of the run.
        labels: what tables call the run: method, model, data, divergence, assistant; of the fine-tuning of a
            model for another run also its `role`.

    Raises:
        InputError: for settings that do not fit, or a directory with a run of another configuration.
    """
    parts = parts_of(cfg)
    cfg = copy.deepcopy(parts.used(cfg))
    objective, text, schedule = parts.objective, parts.text, parts.schedule
    use_threads(cfg["threads"])
    decisive = copy.deepcopy(_decisive(cfg, parts))  # with its models as they are given
    key = config_hash(decisive)
    finished = _finished(directory, decisive, key)
    if finished is not None:
        lacks = parts.compared and "valid_kl_pq" not in finished.training
        hint = ", without a teacher to compare with; to have one, delete the folder" if lacks else ""
        announce(f"{shown(directory)} is finished already{hint}")
        return finished
    one_device(cfg["trainer"])
    parts.sampling.check_installed()
    begun_before = recorded_hash(directory) == key
    loggers = loggers_of(tracking.going_on(cfg["logger"], directory) if begun_before else cfg["logger"])
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
    check_files(cfg["data"])
    check_models(cfg, tokenizer)
    data: InstructionData = instantiate(cfg["data"], tokenizer=tokenizer, _convert_="all")
    tokenizer = data.tokenizer
    check_rates(cfg, steps_of(cfg["trainer"], steps_of_all_rows(cfg, data)))
    evaluation_sets = data.test_examples
    valid = data.valid_examples[: data.valid_prompts]
    check_metrics(data.metrics, {"data.valid": valid} | evaluation_sets)
    plain_text = None if data.plain_tokens is None else data.plain_batch
    if "role" not in labels:  # the run that a fine-tuning is for has said it of the same data
        data.announce_template()
        data.announce_cuts()
        announce_unread(data.metrics, {"data.valid": valid} | evaluation_sets)
    announce_slow_bfloat16(cfg)
    timings = {"load": time.perf_counter() - started}

    started = time.perf_counter()
    with_prepared_models(cfg, data, run_experiment)
    supply_text(cfg, text, tokenizer, data)
    timings["prepare"] = time.perf_counter() - started

    started = time.perf_counter()
    free_gpu_memory()
    L.seed_everything(cfg["seed"], workers=True, verbose=False)
    student = instantiate(cfg["model"]["student"]).load(tokenizer)
    timings["load"] += time.perf_counter() - started

    started = time.perf_counter()
    teacher, shared_vocab = None, None
    if objective.needs_teacher or parts.compared:
        asked = [data.train_tokens, data.valid_tokens] if objective.needs_teacher else [data.valid_tokens]
        teacher = supply_teacher(cfg, tokenizer, data, asked, with_student_text=text.from_student)
        shared_vocab = shared_vocabulary(teacher.vocabulary, student)
    L.seed_everything(cfg["seed"], workers=True, verbose=False)  # whatever was loaded before
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
        valid_score=_valid_score(data, parts.sampling),
        steps=_steps(cfg["trainer"], data),
        log_every_n_steps=cfg["trainer"]["log_every_n_steps"],
        micro_batches=data.micro_batches,
        mean=data.mean,
        text=text,
        plain_text=plain_text,
        plain_text_weight=data.plain_text_weight,
        shared_vocab=shared_vocab,
        schedule=schedule,
    )
    timings["load"] += time.perf_counter() - started

    last = last_checkpoint(directory)
    write_config(cfg, directory, key, decisive)
    scores: dict[str, dict[str, Score]] = {name: {} for name in evaluation_sets}
    tracking.begin(loggers, labels, cfg)
    trainer, training, timings["train"] = fit(cfg, module, data, directory, loggers, last)
    if teacher is not None:
        teacher.to(torch.device("meta"))  # the answers to come need its memory, not the teacher
    if "diverged_step" not in training:
        merge(student)
        _export(student, data.encoder, directory / BEST)
        module.to(trainer.strategy.root_device)
        try:
            evaluation = evaluate_sets(
                student,
                tokenizer,
                evaluation_sets,
                data.encoder,
                parts.sampling,
                data.metrics,
                directory / "generations",
                {"config": key, "student": ModelSource(str(directory / BEST)).fingerprint()},
                trainer.precision_plugin.forward_context,
            )
            scores, timings["evaluate"] = evaluation.scores, evaluation.seconds
        except FloatingPointError as error:
            announce(f"{directory} diverged: {error}; it ends here")
            training["diverged_step"] = training["steps"]
            shutil.rmtree(directory / "generations")
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
        files=sums_of_run(directory),
    )
    save(result, directory)
    for checkpoint in (directory / FOLDER).glob("*.ckpt*"):
        checkpoint.unlink()
    tracking.conclude(loggers, result, directory / "generations")
    return result


def _decisive(cfg: Config, parts: Parts) -> Config:
    """What of `cfg` is hashed: not a teacher that is only compared with, which changes nothing learnt."""
    if parts.compared and not parts.text.from_teacher:
        cfg = {**cfg, "model": {name: part for name, part in cfg["model"].items() if name != "teacher"}}
    return cfg


def _valid_score(data: InstructionData, sampling: Sampling) -> ValidationScore | None:
    """What the answers at validations are scored by: `data.valid_metric`."""
    if data.valid_metric is None:
        return None
    examples = data.valid_examples[: data.valid_prompts]
    return ValidationScore(
        data.valid_metric,
        data.metrics[data.valid_metric],
        [data.encoder.prompt(example) for example in examples],
        [list(example.outputs) for example in examples],
        sampling,
    )


def _steps(trainer: Config, data: InstructionData) -> int:
    """The optimiser steps of a run; says so where they are few, or fewer than `trainer.max_steps`."""
    steps_of_all = len(data.train_dataloader())
    steps = steps_of(trainer, steps_of_all)
    length = length_in_words(trainer, steps_of_all, "trainer")
    if steps < trainer["max_steps"]:
        announce(f"trainer.max_steps={trainer['max_steps']} is not reached: {length}")
    elif steps < FEW_STEPS:
        announce(f"Few steps: {length}")
    return steps


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
            one_device(cfg["trainer"]),
            str(cfg["trainer"]["precision"]),
            data.cache_dir,
        )
        data.train_on(answered)
    text.begin(tokens=data.train_tokens)


def supply_teacher(
    cfg: Config,
    tokenizer: PreTrainedTokenizerBase,
    data: InstructionData,
    asked: Sequence[Tokens],
    with_student_text: bool,
) -> Teacher:
    """The teacher of `cfg`, prepared already, for the rows `asked` of `data`: live, or from its cache.

    Raises:
        InputError: see `TeacherSupply.teacher`.
    """
    settings = cfg["trainer"]
    steps_of_all = len(data.train_dataloader())
    supply: TeacherSupply = instantiate(cfg["teacher"])
    return supply.teacher(
        instantiate(cfg["model"]["teacher"]),
        tokenizer,
        asked,
        fabric=one_device(cfg["trainer"]),
        precision=str(settings["precision"]),
        passes=steps_of(settings, steps_of_all) / steps_of_all,
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


def _finished(directory: Path, cfg: Config, key: str) -> RunResult | None:
    result = load(directory) if (directory / RESULT_FILE).exists() else None
    old = recorded_hash(directory) or (result and result.config_hash)
    if old != key and (result is not None or (directory / "checkpoints").exists()):
        changes = "; ".join(_changes(directory, cfg)) or (
            "what differs is not recorded, as an earlier version of amid recorded less"
        )
        raise InputError(
            f"{directory} holds a run of another configuration: {changes}; choose another output_dir= "
            "(or hydra.run.dir=, where that was given), or delete the folder"
        )
    return result


def _changes(directory: Path, cfg: Config) -> list[str]:
    """What differs between the run begun in `directory` and `cfg`: settings and contents of files."""
    record = read_config(directory)
    if record is None or record.hashed is None:  # of an older version, or none
        return []
    before = {**record.config, "model": record.hashed.model}
    changes = differences(before, cfg)
    contents = record.hashed.contents
    for path, content in contents_of(cfg).items():
        if contents.get(path, content) != content:
            changes.append(f"the content of {path} has changed")
    return changes


def write_config(cfg: Config, directory: Path, key: str, hashed: Config) -> None:
    """Writes `directory`/config.yaml, whole or not at all, without secrets.

    Args:
        cfg: the resolved configuration, with the models that were prepared for it.
        directory: of the run.
        key: the hash of the configuration.
        hashed: the configuration that was hashed, with its models as they were given.
    """
    given = {"model": hashed["model"], "contents": contents_of(hashed)}
    write_settings(without_secrets({"config": cfg, "hashed": given}), directory, key)


def _export(student: PreTrainedModel, encoder: Encoder, directory: Path) -> None:
    """Writes model and tokenizer into a folder that appears whole or not at all."""
    part = directory.with_name(directory.name + ".part")
    save_model(student, encoder.template.tokenizer_of_model(encoder.tokenizer), part)
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
