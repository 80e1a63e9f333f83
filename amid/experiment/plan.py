"""The plan of a run: its configuration as typed parts, each made once, and their checks."""

import copy
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from amid.config.data_files import check_files
from amid.config.identity import config_hash
from amid.errors import InputError, shortened
from amid.measures import VALIDATION
from amid.settings import nodes
from amid.training.length import Length

if TYPE_CHECKING:  # they take seconds to import; mistakes are reported first
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import PreTrainedTokenizerBase

    from amid.data import InstructionData
    from amid.generation.sampling import Sampling
    from amid.losses import Loss
    from amid.models.source import ModelSource
    from amid.schedule import Schedule
    from amid.teacher.supply import TeacherSupply
    from amid.text import Text
    from amid.training.checkpoints import Checkpoints

Settings = dict[str, Any]

ROLES = ("teacher", "student")

ROWS = ("train", "valid", "test", "plain_text")
"""The settings of the data that name its rows."""


def _made(*keys: str) -> Any:
    """A part that the settings at `keys` make, once."""
    return cached_property(
        lambda plan: instantiate(functools.reduce(lambda of, key: of[key], keys, plan._given))
    )


def _value(key: str) -> Any:
    """The value of the setting `key`."""
    return property(lambda plan: plan._given[key])


class Plan:
    """The parts of a run, made from its configuration. Nothing else reads the configuration's dictionary.

    A part is made at its first use, and then stays: a run, its checks and its estimate share it.

    Args:
        settings: a resolved configuration of conf/train.yaml, conf/cache.yaml or conf/evaluate.yaml
            (`amid.config.compose.as_dict`).
        trains: whether a student is trained. A teacher that the training has no use for is then left out.
        at: the prefix of the training's keys, such as "model.teacher.sft." in the fine-tuning of a teacher.
    """

    def __init__(self, settings: Settings, trains: bool = True, at: str = "") -> None:
        self._given, self._trains, self.at = settings, trains, at
        self._prepared: Settings = {}

    objective: "Loss" = _made("objective")
    """The loss."""
    text: "Text" = _made("text")
    """Says who wrote the responses that the student is trained on."""
    sampling: "Sampling" = _made("generation")
    """How answers are drawn for the scores."""
    supply: "TeacherSupply" = _made("teacher")
    """How the run gets the teacher's signal."""
    checkpoints: "Checkpoints" = _made("checkpoint")
    """Which checkpoints are kept."""
    optimizer: "Callable[..., Optimizer]" = _made("optimizer")
    """A function from parameters, `params=`, to an optimiser."""
    scheduler: "Callable[..., LRScheduler]" = _made("scheduler")
    """A function from an optimiser to a learning-rate schedule (`amid.training.learning_rate.scheduled`)."""
    tokenizer: "PreTrainedTokenizerBase" = _made("model", "tokenizer")
    seed: int = _value("seed")
    threads: int | None = _value("threads")
    """CPU threads; None for all."""
    clip_norm: float | None = _value("clip_norm")
    """The norm that the gradient is scaled down to; None for never."""
    loggers: Mapping[str, Settings] = _value("logger")
    """The settings of Lightning's loggers, by name."""

    @cached_property
    def schedule(self) -> "Schedule | None":
        """The schedule that changes settings of the assistant in training; None for no schedule."""
        made: Schedule | None = instantiate(self._given.get("schedule"))
        return made

    @cached_property
    def callbacks(self) -> "dict[str, Callback]":
        """The user's own callbacks of Lightning, by name.

        Early stopping checks where a validation ends: a resumed run may not call the hooks of an epoch's end.
        """
        made = made_by_name("callbacks", self._given.get("callbacks") or {})
        for callback in made.values():
            if getattr(callback, "_check_on_train_epoch_end", True) is None:
                callback._check_on_train_epoch_end = False
        return made

    @cached_property
    def trainer(self) -> nodes.Trainer:
        """The settings of Lightning's trainer."""
        return nodes.Trainer.model_construct(**self._given["trainer"])

    def lightning(self, **further: Any) -> "L.Trainer":
        """Lightning's trainer, with arguments besides its settings, or in their place."""
        made: L.Trainer = instantiate(self._given["trainer"], **further)
        return made

    @cached_property
    def length(self) -> Length:
        """How long the training is."""
        trainer = self.trainer
        return Length(
            trainer.max_epochs,
            trainer.max_steps,
            trainer.check_val_every_n_epoch,
            trainer.limit_train_batches,
            f"{self.at}trainer",
        )

    @property
    def labels(self) -> dict[str, Any]:
        """The labels of the objective in tables: its order, and its assistant's α and λ; None for none. Also
        `teacher_states` if these are lossy."""
        assistant = getattr(self.objective, "assistant", None)
        lossy = self.asks_teacher and self.supply.lossy
        return {
            "order": getattr(self.objective, "order", None),
            "alpha": getattr(assistant, "alpha", None),
            "lam": getattr(assistant, "lam", None),
            **({"teacher_states": self.supply.states} if lossy else {}),
        }

    # The data

    @cached_property
    def data_settings(self) -> nodes.Data:
        """The settings of the data."""
        return nodes.Data.model_construct(**self._given["data"])

    def data(
        self, tokenizer: "PreTrainedTokenizerBase | None" = None, without: Iterable[str] = ()
    ) -> "InstructionData":
        """Returns the data; no file is read yet.

        Args:
            tokenizer: None for the plan's own.
            without: the sources that are left out: ROWS, or some of them.
        """
        settings = self._given["data"] | {name: {} if name == "test" else None for name in without}
        made: InstructionData = instantiate(settings, tokenizer=tokenizer or self.tokenizer, _convert_="all")
        return made

    def longest_texts(self, *reads: str) -> dict[str, int]:
        """The tokens of the longest texts that a model reads, by the settings that make them so long.

        Args:
            reads: some of data, text and generation: rows of the data; answers that are trained on, whoever
                gave them; the model's own answers for the scores.
        """
        longest, prompt = self.data_settings.max_length, self.data_settings.max_prompt_length
        texts = {f"data.max_length={longest}": longest} if "data" in reads else {}
        for part, unread in (("text", 0), ("generation", 1)):  # what is drawn last is then not read
            new = (self._given.get(part) or {}).get("max_new_tokens")
            if part in reads and new is not None:
                marked = (self._given[part].get("labels") == "unshifted") - unread  # a cut answer gets an EOS
                texts[f"data.max_prompt_length={prompt} with {part}.max_new_tokens={new}"] = (
                    prompt + new + marked
                )
        return texts

    # The models

    @property
    def models(self) -> dict[str, nodes.ModelSource]:
        """The settings of teacher and student, each only if the run uses it."""
        models = self.settings["model"]
        return {role: nodes.ModelSource.model_construct(**models[role]) for role in ROLES if models.get(role)}

    def source(self, role: str) -> "ModelSource":
        """Where the teacher or the student comes from."""
        settings = self._prepared.get(role) or self._given["model"][role]
        made: ModelSource = instantiate({key: value for key, value in settings.items() if key != "sft"})
        return made

    @property
    def compared(self) -> bool:
        """Whether validations compare the student with a teacher that the objective does not need.

        That is so with `teacher=cached`, which asks for the teacher's states, where they can be kept.
        """
        asked = (self._given.get("teacher") or {}).get("mode") == "cached"
        teacher = self._given["model"].get("teacher") or {}
        stored = bool(teacher.get("path") or teacher.get("sft"))
        return asked and stored and not self.objective.needs_teacher

    @property
    def asks_teacher(self) -> bool:
        """Whether the training or its validations need the teacher's signal."""
        return self.objective.needs_teacher or self.compared

    def with_model(self, role: str, path: Path) -> "Plan":
        """This plan with a fine-tuned model, which lies in `path`, in place of the one to fine-tune.

        Parts that are made already are the same in both.
        """
        given = self._given["model"][role]
        kept: tuple[str, ...] = ("_target_", "dtype", "quantization", "device_map", "attention")
        kept += ("lora", "gradient_checkpointing") if role == "student" else ()
        model = {key: given[key] for key in kept if key in given} | {"path": str(path)}
        plan = copy.copy(self)
        plan._prepared = {**self._prepared, role: model}
        return plan

    @property
    def prepared_dir(self) -> Path:
        """The folder of the fine-tuned models."""
        return Path(self._given["prepared_dir"])

    @cached_property
    def fine_tunings(self) -> "dict[str, Plan]":
        """The supervised runs that prepare the models which are fine-tuned first, by role."""
        tuned = [role for role, model in self.models.items() if model.sft]
        return {role: Plan(self._fine_tuning(role), at=f"model.{role}.sft.") for role in tuned}

    def fine_tuning_folder(self, role: str) -> Path:
        """The folder that a fine-tuned model is kept in, named by the hash of its configuration."""
        return self.prepared_dir / f"sft-{self.fine_tunings[role].key}"

    def _fine_tuning(self, role: str) -> Settings:
        given, source = self._given["data"], dict(self._given["model"][role])
        sft, name = source.pop("sft"), given.get("valid_metric")
        if sft["checkpoint"]["monitor"] != f"valid/{name}":
            name = None  # then no answers need to be drawn
        for of_teacher in ("quantization", "device_map"):
            source.pop(of_teacher, None)
        if source.get("lora") is None:
            source["dtype"] = "float32"
        data = {
            **given,
            **{key: sft[key] for key in ("batch_size", "micro_batch_size", "tokens_per_batch", "seed")},
            "valid_prompts": 16,
            "valid_metric": name,
            "metrics": {} if name is None else {name: given["metrics"][name]},
            "test": {},
            "test_prompts": None,
            "pass_at": [],
            "plain_text": None,
            "plain_text_weight": 1.0,
        }
        return {
            "model": {"tokenizer": self._given["model"]["tokenizer"], "student": source},
            "data": data,
            "objective": {"_target_": "amid.losses.CrossEntropy"},
            "text": {"_target_": "amid.text.DataText"},
            "generation": {
                "_target_": "amid.generation.Sampling",
                "max_new_tokens": data["max_length"] - data["max_prompt_length"],
                "seeds": [sft["seed"]],
            },
            "logger": {},
            "threads": self._given["threads"],
            **{
                key: sft[key]
                for key in ("optimizer", "scheduler", "trainer", "checkpoint", "clip_norm", "seed")
            },
        }

    def logging_to(self, directory: Path) -> "Plan":
        """This plan with `directory`/metrics.csv as its only log."""
        csv = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(directory)}
        plan = copy.copy(self)
        plan._given = {**self._given, "logger": {"csv": csv | {"name": "", "version": ""}}}
        vars(plan).pop("_used", None)
        return plan

    # What is recorded

    @cached_property
    def _used(self) -> Settings:
        """The settings as they were given, without a teacher that the training has no use for."""
        if not self._trains or self.asks_teacher or self.text.from_teacher:
            return self._given
        return _without_teacher(self._given)

    @property
    def settings(self) -> Settings:
        """The recorded settings of the run, with the models that were prepared for it."""
        return {**self._used, "model": {**self._used["model"], **self._prepared}}

    @cached_property
    def hashed(self) -> Settings:
        """The settings that decide the result, with the models as they were given.

        A teacher that the student is only compared with is left out: it changes no training. It stays where
        the comparison ends the training or chooses the weights.
        """
        only_compared = self._trains and self.compared and not self.text.from_teacher
        if only_compared and not self._watches_teacher:
            return _without_teacher(self._used)
        return self._used

    @property
    def _watches_teacher(self) -> bool:
        """Whether the checkpoints or a callback go by a measure of the student against the teacher."""
        against = {of.logged for of in VALIDATION.values() if of.taken == "with a teacher"}
        watching = [self._given["checkpoint"], *(self._given.get("callbacks") or {}).values()]
        return any(settings.get("monitor") in against for settings in watching)

    @cached_property
    def key(self) -> str:
        """The hash of what decides the result (`amid.config.identity.config_hash`)."""
        return config_hash(self.hashed)

    def has_key(self, key: str | None) -> bool:
        """Returns whether `key` is the key of this plan; None is not.

        The objective says whether the teacher is hashed, and making it imports torch, which takes seconds.
        The settings of the objective are hashed too. So a key with the teacher was computed with an objective
        that needs it, a key without the teacher with one that does not: either is the key of this plan.
        """
        either = [self._given, _without_teacher(self._given)] if self._trains else [self._given]
        return any(config_hash(settings) == key for settings in either) or key == self.key

    def fingerprint(self, *names: str) -> str:
        """A text that is the same for runs with the same settings, such as model.tokenizer or data, with the
        models as they were given; data.seed, which orders rows, has no part in it."""
        data = {**self._given["data"], "seed": None}
        found = []
        for name in names:
            node: Any = {**self._used, "data": data}
            for key in name.split("."):
                node = (node or {}).get(key)
            found.append(node)
        return json.dumps(found, sort_keys=True, default=str)

    # Its checks

    def check_at_once(self) -> None:
        """Checks the files of the data and the objective, which need no slow imports.

        Raises:
            InputError: for a file that is not there, or an objective that is refused.
        """
        check_files(self.data_settings)
        self.objective  # noqa: B018

    def check(self) -> None:
        """Checks all that needs neither data nor models, the fine-tunings of models too.

        Raises:
            InputError: for a setting outside its range, or settings that do not fit.
        """
        from amid.experiment.check_plan import check_parts

        self.check_at_once()
        check_parts(self)

    def check_rates(self, steps: int) -> None:
        """Checks that the optimiser and the learning-rate schedule can be made for so many steps.

        Raises:
            InputError: naming the one that cannot.
        """
        from amid.training.learning_rate import check_rates

        check_rates(self._given, steps, self.at)

    def check_inputs(self) -> None:
        """Checks the tokenizer, the settings of the data and the models, without a row or a weight.

        Raises:
            InputError: for what a run would refuse too.
        """
        from amid.experiment.check_plan import check_models

        self.data(without=ROWS)
        check_models(self)


def made_by_name(group: str, settings: Mapping[str, Settings]) -> dict[str, Any]:
    """Makes the objects of a group's nodes, such as the loggers of a run.

    Raises:
        InputError: naming the node that cannot be made, for example because its package is not installed.
    """
    made = {}
    for name, node in settings.items():
        try:
            made[name] = instantiate(node)
        except InstantiationException as error:  # whatever a library raises for a value
            reason = shortened(str(error.__cause__ or error))
            raise InputError(
                f"{group}.{name} cannot be made ({reason}); see the documentation of {node['_target_']}"
            ) from error
    return made


def _without_teacher(settings: Settings) -> Settings:
    return {
        **settings,
        "model": {name: part for name, part in settings["model"].items() if name != "teacher"},
    }
