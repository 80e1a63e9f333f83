"""The entry point of `amid cache`."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from amid.config.compose import as_dict
from amid.data import InstructionData
from amid.errors import InputError
from amid.experiment.fine_tuning import with_prepared_models
from amid.experiment.run import run_experiment, supply_teacher, supply_text
from amid.tracking.progress import silence_bars
from amid.training.precision import announce_slow_bfloat16
from amid.training.trainer import one_device, use_threads


def run(cfg: DictConfig) -> None:
    """Writes the states of `model.teacher` at the counted positions of the training and validation data.

    The teacher is fine-tuned first where its pair says so. With text=teacher its answers are written first,
    and the states are those of its answers. What is written already stays.

    Raises:
        InputError: if `teacher` is not `cached`, teacher or data cannot be used, or the disk is too full.
    """
    silence_bars()
    settings = as_dict(cfg)
    if settings["teacher"]["mode"] != "cached":
        raise InputError("amid cache writes the states that teacher=cached reads; leave out teacher=")
    settings["model"].pop("student")
    use_threads(settings["threads"])
    one_device(settings["trainer"])
    tokenizer = instantiate(settings["model"]["tokenizer"])
    data: InstructionData = instantiate(settings["data"], tokenizer=tokenizer)
    tokenizer = data.tokenizer
    data.announce_cuts(["train", "valid"])  # reads the rows: a mistake in one comes before any line
    data.announce_template()
    announce_slow_bfloat16(settings)
    with_prepared_models(settings, data, run_experiment)
    supply_text(settings, instantiate(settings["text"]), tokenizer, data)
    asked = [data.train_tokens, data.valid_tokens]
    supply_teacher(settings, tokenizer, data, asked, with_student_text=False)
