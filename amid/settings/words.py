"""Values as the user types them, and amid's settings for the names that other tools use."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from amid.errors import shortened

OTHER_WORDS = {
    "accumulate_grad_batches": "an optimiser step has data.batch_size rows, cut into parts by "
    "data.micro_batch_size or data.tokens_per_batch",
    "gradient_clip_val": "it is called clip_norm here",
    "gradient_clip_algorithm": "gradients are clipped by their norm, clip_norm",
    "val_check_interval": "a validation ends an epoch (trainer.check_val_every_n_epoch), and "
    "trainer.limit_train_batches makes epochs shorter",
    "callbacks": "callbacks stand at the top: callbacks=ema, or +callbacks.mine._target_=mine.Callback",
    "sync_batchnorm": "language models have no batch normalisation",
    "use_distributed_sampler": "each device has its share of a step's rows, by tokens",
    "logger": "choose logger=csv or logger=wandb",
    "enable_checkpointing": "checkpoints are chosen by checkpoint=metric or checkpoint=loss",
    "enable_progress_bar": "progress is shown on a terminal alone",
    "default_root_dir": "the folder of runs is output_dir",
    "min_epochs": "use trainer.max_epochs",
    "min_steps": "use trainer.max_steps",
    "max_time": "use trainer.max_steps; an interrupted run goes on where it was",
    "limit_val_batches": "use data.valid_rows, and data.valid_prompts for the answers",
    "limit_test_batches": "use data.test_prompts",
    "limit_predict_batches": "use data.test_prompts",
    "overfit_batches": "use a part of the rows: data.train='FILE[:64]', or data.train.size with data=builtin",
    "fast_dev_run": "use trainer.max_steps=1",
    "reload_dataloaders_every_n_epochs": "the data of a run are read once",
    "barebones": "leave it out",
    "plugins": "leave it out",
    "save_top_k": "the best epoch's student is kept, of all that checkpoint.monitor has seen",
    "save_last": "the last state is always kept while a run trains",
    "save_weights_only": "leave it out: a run could not be resumed",
    "every_n_epochs": "use trainer.check_val_every_n_epoch",
    "every_n_train_steps": "use checkpoint.every_n_steps",
    "train_time_interval": "use checkpoint.every_minutes",
    "save_on_train_epoch_end": "the student is kept after a validation",
    "dirpath": "the folder of runs is output_dir",
    "filename": "leave it out: the file is checkpoints/best-epoch.ckpt of the run's folder",
}
"""Names of Lightning's settings, each with amid's own setting."""

NEED_A_SCORE = ("reduce_lr_on_plateau", "greedy")
"""Learning-rate schedules of transformers that follow a measured score instead of the steps."""

_BATCH = "use data.batch_size, the rows of an optimiser step"
_EPOCHS = "use trainer.max_epochs"
_WARMUP = "use scheduler.warmup, in steps or as a share of them"
_PRECISION = "use trainer.precision=bf16-mixed"

OF_OTHER_TOOLS = {
    "learning_rate": "it is called optimizer.lr here",
    "batch_size": _BATCH,
    "batchsize": _BATCH,
    "train_batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": "use generation.batch_size, the answers that are drawn at once",
    "gradient_accumulation_steps": OTHER_WORDS["accumulate_grad_batches"],
    "num_train_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "epochs": _EPOCHS,
    "max_grad_norm": "it is called clip_norm here",
    "grad_clip": "it is called clip_norm here",
    "warmup_steps": _WARMUP,
    "warmup_ratio": _WARMUP,
    "num_warmup_steps": _WARMUP,
    "max_seq_length": "use data.max_length",
    "max_seq_len": "use data.max_length",
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "mixed_precision": _PRECISION,
    "lr_scheduler_type": "choose scheduler=linear or another option (amid help scheduler lists them)",
    "eval_steps": "use trainer.check_val_every_n_epoch",
    "eval_strategy": "use trainer.check_val_every_n_epoch",
    "evaluation_strategy": "use trainer.check_val_every_n_epoch",
    "save_steps": "use checkpoint.every_n_steps",
    "save_strategy": "use checkpoint.every_n_steps",
    "logging_steps": "use trainer.log_every_n_steps",
    "report_to": "choose logger=csv or logger=wandb",
    "model_name_or_path": "give model.student.path and model.teacher.path",
    "train_file": "use data=jsonl data.train=FILE",
    "validation_file": "use data=jsonl data.valid=FILE",
    "dataset_name": "use data=jsonl data.train=OWNER/NAME",
    "output_folder": "it is called output_dir here",
}
"""Names of settings in the trainers of transformers and other tools, each with amid's own setting."""


def other_word(key: str) -> str | None:
    """Returns what to set in amid in place of another tool's setting `key`; None for other settings."""
    *nodes_of_it, last = key.split(".")
    where = nodes_of_it[-1] if nodes_of_it else ""
    remedy = OTHER_WORDS.get(last) if where in ("", "trainer", "checkpoint") else None
    if remedy is None and where in ("", "trainer", "optimizer", "scheduler", "data"):
        remedy = OF_OTHER_TOOLS.get(last)
    in_sft = ".sft." in key
    if remedy is None or not in_sft:
        return remedy
    prefix = key.partition(".sft.")[0] + ".sft"
    for name in ("micro_batch_size", "tokens_per_batch", "batch_size"):
        remedy = remedy.replace(f"data.{name}", f"{prefix}.{name}")
    return remedy.replace("clip_norm", f"{prefix}.clip_norm").replace("trainer.", f"{prefix}.trainer.")


def is_referred_to(key: str, texts: Iterable[str]) -> bool:
    """Returns whether an interpolation in `texts` names the top-level setting `key` or a part of it."""
    pattern = re.compile(rf"\$\{{\s*\.*{re.escape(key)}\s*[.\[}}]")
    return any(pattern.search(text) for text in texts)


def nearest_setting(name: str, known: Sequence[str]) -> str:
    """Returns the end of a message about an unknown setting: the nearest one, or where a list of them is."""
    others = [one for one in known if one != name]
    near = difflib.get_close_matches(name, others, 1)
    if not near:
        last = {one.rpartition(".")[2]: one for one in reversed(others)}
        near = [last[one] for one in difflib.get_close_matches(name.rpartition(".")[2], list(last), 1)]
    return f"; did you mean {near[0]!r}?" if near else "; `amid train --help` lists them"


def keys_of(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the names of all settings in nested mappings, with dots between the keys."""
    for key, child in content.items():
        yield f"{prefix}{key}"
        if isinstance(child, Mapping):
            yield from keys_of(child, f"{prefix}{key}.")


def shown(value: Any) -> str:
    """Returns a value as the user would type it, cut if it is long."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{name}: {shown(child)}" for name, child in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(shown, value)) + "]"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = f"'{value}'" if isinstance(value, str) and as_number(value) is not None else str(value)
    return shortened(text, 100)


def as_number(text: str) -> float | None:
    """Returns the number that text looks like; None for other text."""
    try:
        return float(text)
    except ValueError:
        return None
