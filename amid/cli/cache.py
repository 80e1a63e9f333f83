"""The entry point of `amid cache`."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from amid.config.compose import as_dict
from amid.config.data_files import check_files
from amid.data import InstructionData
from amid.errors import InputError
from amid.experiment.fine_tuning import check_models, with_prepared_models
from amid.experiment.run import run_experiment, supply_teacher, supply_text
from amid.tracking.progress import silence_bars
from amid.training.precision import announce_slow_bfloat16
from amid.training.trainer import one_device, use_threads


def check(settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Checks what needs no row of the data and no weight of the teacher, and takes the student out of
    `settings`; returns the tokenizer.

    Raises:
        InputError: see `run`.
    """
    if settings["teacher"]["mode"] != "cached":
        raise InputError("amid cache writes the states that teacher=cached reads; leave out teacher=")
    settings["model"].pop("student")
    if settings["model"].get("teacher") is None:
        raise InputError("model.teacher=null: there are no states to write; give model.teacher.path")
    tokenizer: PreTrainedTokenizerBase = instantiate(settings["model"]["tokenizer"])
    check_files(settings["data"])
    check_models(settings, tokenizer)
    return tokenizer


def run(cfg: DictConfig) -> None:
    """Writes the states of `model.teacher` at the counted positions of the training and validation data.

    The teacher is fine-tuned first where its pair says so. With text=teacher its answers are written first,
    and the states are those of its answers. What is written already stays.

    Raises:
        InputError: if `teacher` is not `cached`, teacher or data cannot be used, or the disk is too full.
    """
    silence_bars()
    settings = as_dict(cfg)
    use_threads(settings["threads"])
    one_device(settings["trainer"])
    tokenizer = check(settings)
    data: InstructionData = instantiate(settings["data"], tokenizer=tokenizer, _convert_="all")
    tokenizer = data.tokenizer
    data.announce_cuts(["train", "valid"])  # reads the rows: a mistake in one comes before any line
    data.announce_template()
    announce_slow_bfloat16(settings)
    with_prepared_models(settings, data, run_experiment)
    supply_text(settings, instantiate(settings["text"]), tokenizer, data)
    asked = [data.train_tokens, data.valid_tokens]
    supply_teacher(settings, tokenizer, data, asked, with_student_text=False)
