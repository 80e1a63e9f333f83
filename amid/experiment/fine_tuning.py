"""Teacher and student before a run: fine-tuned on its data where the pair says so, once for all runs."""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from transformers import PreTrainedTokenizerBase

from amid.config.identity import config_hash
from amid.console import announce
from amid.data import InstructionData
from amid.errors import Damaged, InputError
from amid.files import only_writer
from amid.models.limits import check_lengths, check_reads_forwards, texts_of
from amid.models.source import ModelSource, load_tokenizer
from amid.models.vocabulary import check_same_tokens, output_rows
from amid.results import BEST, REMEDY, RESULT_FILE, RunResult, check_student, load
from amid.tracking.status import PREPARING, tell, watched
from amid.training.learning_rate import check_rates
from amid.training.trainer import length_in_words, one_device, steps_of

Config = dict[str, Any]

Run = Callable[[Config, Path, Mapping[str, Any]], RunResult]
"""What trains and records the run of a configuration, as `amid.experiment.run.run_experiment` does."""


def with_prepared_models(cfg: Config, data: InstructionData, run: Run) -> None:
    """Replaces each model of `cfg` that is to be fine-tuned first by the fine-tuned one.

    What is not there yet is made, once, by `run`, an ordinary supervised one in `prepared_dir`, in a folder
    named by the hash of its configuration; other processes wait for it.

    A student that is trained with adapters is so both times: in its fine-tuning, after which they are merged,
    and in the run, with new ones.

    Raises:
        InputError: if a fine-tuning diverged, or its schedule does not fit its steps.
    """
    tuned = [role for role, source in _models(cfg).items() if source.get("sft")]
    for role in tuned:
        settings = fine_tuning_settings(cfg, role)
        steps = steps_of(settings["trainer"], steps_of_all_rows(settings, data))
        check_rates(settings, steps, f"model.{role}.sft.")
        one_device(settings["trainer"], f"model.{role}.sft.trainer")
    for role, source in _models(cfg).items():
        if role in tuned:
            cfg["model"][role] = prepared(source, role, _fine_tuned(cfg, role, data, run))


def check_models(cfg: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks the settings of the models of `cfg`, that there are such models, that they can read its texts,
    and that their tokenizers are `tokenizer`.

    Raises:
        InputError: if a model cannot be found, its tokenizer is not the run's, it cannot read such texts, or
            the teacher has adapters that nothing trains.
    """
    models = _models(cfg)
    if "teacher" in models and models["teacher"].get("lora") is not None and not models["teacher"].get("sft"):
        raise InputError(
            "model.teacher.lora is for the teacher's fine-tuning, and model.teacher.sft=null has none; "
            "set model.teacher.lora=null too"
        )
    for role, source in models.items():
        with _named(role):
            model: ModelSource = instantiate({key: value for key, value in source.items() if key != "sft"})
            skeleton = model.skeleton(model.config(tokenizer))
            model.check_rows(skeleton, tokenizer)
        name = f"the {role} {model.path or ''}".strip()
        check_reads_forwards(name, skeleton)
        _check_shared_vocabulary(cfg["objective"], name, output_rows(skeleton))
        reads = ("data", "text", *(("generation",) if role == "student" else ()))
        check_lengths(name, skeleton, texts_of(cfg, reads))
        if source.get("path") is not None:
            check_same_tokens(role, tokenizer, load_tokenizer(source["path"]))


@contextlib.contextmanager
def _named(role: str) -> Iterator[None]:
    """Has a mistake in the settings of a model name them by their keys, such as `model.teacher.path`."""
    try:
        yield
    except InputError as error:
        text = str(error).replace("model.student.layers", "model layers")
        raise InputError(re.sub(r"^model (?=[a-z]+[=.])", f"model.{role}.", text)) from error


def _check_shared_vocabulary(objective: Config, name: str, rows: int) -> None:
    shared = objective.get("shared_vocab")
    if shared is not None and shared > rows:
        raise InputError(
            f"objective.shared_vocab={shared} is more than the {rows} tokens that {name} has logits for; "
            f"use {rows} at most, or null"
        )


def _models(cfg: Config) -> dict[str, Config]:
    return {role: cfg["model"][role] for role in ("teacher", "student") if cfg["model"].get(role)}


def prepared(source: Config, role: str, best: Path) -> Config:
    """The settings of a model that was fine-tuned from `source`, and lies in `best`."""
    kept = ("_target_", "dtype", *(("lora",) if role == "student" else ()))
    return {key: source[key] for key in kept if key in source} | {"path": str(best)}


def fine_tuning(cfg: Config, role: str) -> tuple[Config, Path]:
    """The supervised run that prepares a model of `cfg`, and the folder that it is kept in."""
    run = fine_tuning_settings(cfg, role)
    return run, Path(cfg["prepared_dir"]) / f"sft-{config_hash(run)}"


def fine_tuning_settings(cfg: Config, role: str) -> Config:
    """The configuration of the supervised run that prepares a model of `cfg`."""
    source = dict(cfg["model"][role])
    sft = source.pop("sft")
    name = cfg["data"].get("valid_metric")
    if sft["checkpoint"]["monitor"] != f"valid/{name}":
        name = None  # then no answers need to be drawn
    if source.get("lora") is None:
        source["dtype"] = "float32"
    data = {
        **cfg["data"],
        "batch_size": sft["batch_size"],
        "micro_batch_size": sft["micro_batch_size"],
        "tokens_per_batch": sft["tokens_per_batch"],
        "seed": sft["seed"],
        "valid_prompts": 16,
        "valid_metric": name,
        "metrics": {} if name is None else {name: cfg["data"]["metrics"][name]},
        "test": {},
        "test_prompts": None,
        "plain_text": None,
        "plain_text_weight": 1.0,
    }
    return {
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


def steps_of_all_rows(settings: Config, data: InstructionData) -> int:
    """The optimiser steps of an epoch over all training data of a run or a fine-tuning, none tokenised."""
    return -(-len(data.train_examples) // int(settings["data"]["batch_size"]))


def forget_damaged(directory: Path) -> None:
    """Deletes a fine-tuned model whose files are not those that its run wrote, so that it is made anew."""
    try:
        if (directory / RESULT_FILE).exists():
            result = load(directory)
            if result.diverged_step is None:
                check_student(directory, result, REMEDY)
    except Damaged as error:
        announce(f"{str(error).removesuffix(f'; {REMEDY}')}: the model is made anew")
        shutil.rmtree(directory)
        directory.mkdir()


def _fine_tuned(cfg: Config, role: str, data: InstructionData, run: Run) -> Path:
    """The folder of the fine-tuned model, which is made where it is not there."""
    settings, directory = fine_tuning(cfg, role)
    directory.mkdir(parents=True, exist_ok=True)
    tell(note=PREPARING, part=f"fine-tuning of the {role}")
    with only_writer(directory, f"the fine-tuned {role}"):
        forget_damaged(directory)
        if not (directory / RESULT_FILE).exists():
            steps_of_all = steps_of_all_rows(settings, data)
            length = length_in_words(settings["trainer"], steps_of_all, f"model.{role}.sft.trainer")
            announce(f"Fine-tuning the {role} first, once, in {directory}: {length}")
            csv = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(directory)}
            settings["logger"] = {"csv": csv | {"name": "", "version": ""}}
            with watched(directory):
                run(settings, directory, {"method": "sft", "role": role})
        step = load(directory).diverged_step
    tell(note=PREPARING)
    if step is not None:
        raise InputError(
            f"the {role}'s fine-tuning in {directory} diverged at step {step}; "
            f"lower model.{role}.sft.optimizer.lr"
        )
    return directory / BEST
