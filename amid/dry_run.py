"""`amid sweep NAME --dry-run`: the runs of a sweep, and what they will take, without starting any."""

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from huggingface_hub import constants, get_session
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from amid.checks import parts_of
from amid.config import LONGEST_NAME
from amid.data import InstructionData
from amid.data.examples import Example
from amid.data.sources import load_examples
from amid.errors import InputError
from amid.fit import steps_of
from amid.memory import training_memory
from amid.models import ModelSource
from amid.preparation import fine_tuning, prepared
from amid.results import BEST, RESULT_FILE, RunResult, files_below, load
from amid.sweep import Sweep
from amid.teacher import TeacherCache
from amid.train import as_dict

RATES = {"cpu": 5e10, "cuda": 1.5e14}
"""Useful operations a second that are assumed where no finished run tells: of a few cores; of an H100
with models of 1B or more (those of 0.1B reached 3e13)."""

UNKNOWN = "unknown"

SAMPLE = 256
"""Rows whose lengths stand for those of all."""

Config = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a run takes; None for what is not known, a part of it being unknown."""

    steps: int | None = None
    tokens: float | None = None
    """That go through the student in training, without padding."""
    operations: float | None = None
    """Floating-point operations: 6 for each weight and token of a model that is trained, 2 for one that is
    not."""
    memory: float | None = None
    """Bytes while it trains, as `training_memory` counts."""
    disk: float | None = None
    """Bytes that it leaves."""
    checkpoints: float | None = None
    """Further bytes on disk while it trains."""


@dataclass(frozen=True)
class Once:
    """Work that several runs share."""

    what: str
    cost: Cost
    done: bool


class Estimator:
    """What runs take, from their configurations; what cannot be had for that is said in `unknown`.

    Only tokenizers, the configurations of models, and data are read, no weights.
    """

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}
        """What could not be had, and why."""
        self._found: dict[str, Any] = {}

    def run(self, cfg: Config) -> Cost:
        """What the run of a configuration takes by itself, with all that it shares done.

        Raises:
            InputError: if its objective is refused.
        """
        objective, text = instantiate(cfg["objective"]), instantiate(cfg["text"])
        student, teacher = self._skeleton(cfg, "student"), None
        data, trainer = cfg["data"], cfg["trainer"]
        live_teacher: float | None = 0.0
        if objective.needs_teacher:
            teacher = self._skeleton(cfg, "teacher")
            if not self._cached(cfg) or text.from_student:  # the student's text is in no cache
                live_teacher = _map(teacher, lambda model: 2 * _weights(model))
        train, valid = self._rows(cfg, "train"), self._rows(cfg, "valid")
        row, _ = self._lengths(cfg)
        steps = _map(train, lambda rows: steps_of(trainer, math.ceil(rows / data["batch_size"])))
        if train is None and trainer["max_epochs"] == -1 and trainer["max_steps"] > 0:
            steps = trainer["max_steps"]
        tokens = _product(steps, data["batch_size"], row)
        own = _map(student, _weights)
        passes = max(trainer["max_epochs"], 1) + 1
        operations = _sum(
            _product(tokens, _sum(_product(6, own), live_teacher)),
            _product(passes, valid, row, _sum(_product(2, own), live_teacher)),
            _product(2, own, self._answers(cfg), data["max_length"]),
        )
        return Cost(
            int(steps) if steps is not None else None,
            tokens,
            operations,
            self._memory(cfg, student, teacher, objective.needs_teacher, body=live_teacher != 0),
            *_disk(student),
        )

    def shared(self, cfg: Config) -> dict[str, Once]:
        """By what identifies it, the work that the run shares with others."""
        works = {}
        needs_teacher = instantiate(cfg["objective"]).needs_teacher or instantiate(cfg["text"]).from_teacher
        for role in ("teacher", "student") if needs_teacher else ("student",):
            if cfg["model"][role].get("sft"):
                run, directory = fine_tuning(dict(cfg), role)
                cost = self.run({**run, "teacher": {}})
                name = cfg["model"][role].get("path") or "random weights"
                works[str(directory)] = Once(
                    f"fine-tuning of the {role} ({name})", cost, (directory / RESULT_FILE).exists()
                )
        if instantiate(cfg["objective"]).needs_teacher and self._cached(cfg):
            teacher = self._skeleton(cfg, "teacher")
            rows = _sum(self._rows(cfg, "train"), self._rows(cfg, "valid"))
            row, response = self._lengths(cfg)
            tokens = _product(rows, row)
            cost = Cost(
                steps=0,
                tokens=tokens,
                operations=_product(2, _map(teacher, _weights), tokens),
                memory=_map(teacher, _bytes),
                disk=_product(rows, response, _map(teacher, _state_bytes)),
            )
            key = json.dumps(
                [cfg["model"]["teacher"], cfg["model"]["tokenizer"], _data_key(cfg)], default=str
            )
            works[key] = Once("the teacher's states", cost, self._states_written(cfg))
        return works

    def kind(self, cfg: Config) -> tuple[object, str]:
        """Of the student and the data, whose runs take alike for each operation."""
        return _map(self._skeleton(cfg, "student"), _weights) or json.dumps(cfg["model"]), _data_key(cfg)

    def _states_written(self, cfg: Config) -> bool:
        """Whether the cache has the states of the teacher, which is prepared already, on the data."""
        cache_dir = Path(cfg["teacher"]["cache_dir"])
        teacher = {name: value for name, value in cfg["model"]["teacher"].items() if name != "sft"}
        if cfg["model"]["teacher"].get("sft"):
            best = fine_tuning(dict(cfg), "teacher")[1] / BEST
            teacher = prepared(teacher, "teacher", best)
            if not best.exists():
                return False
        tokenizer = self._tokenizer(cfg)
        if tokenizer is None or not any(cache_dir.glob("teacher-*")):
            return False

        def find() -> bool:
            data: InstructionData = instantiate(
                {**cfg["data"], "test": {}, "plain_text": None}, tokenizer=tokenizer
            )
            fingerprint = instantiate(teacher).fingerprint()
            sets = [data.train_tokens, data.valid_tokens]
            return TeacherCache(cache_dir, fingerprint, str(cfg["trainer"]["precision"]), sets).listed

        key = ["states", teacher, str(cache_dir), str(cfg["trainer"]["precision"]), _data_key(cfg)]
        return bool(self._get("whether the teacher's states are there", key, find))

    @staticmethod
    def _cached(cfg: Config) -> bool:
        """Whether the teacher's states will be read from disk, as they are in a sweep by default."""
        stored = cfg["model"]["teacher"].get("sft") or cfg["model"]["teacher"].get("path")
        unseen = instantiate(cfg["text"]).from_student
        modes = ("cached",) if unseen else ("cached", "auto")
        return cfg["teacher"].get("mode", "live") in modes and bool(stored)

    def _memory(
        self,
        cfg: Config,
        student: PreTrainedModel | None,
        teacher: PreTrainedModel | None,
        needs_teacher: bool,
        body: bool,
    ) -> float | None:
        """Of training, with the teacher's `body`, or its head alone."""
        if student is None or (needs_teacher and teacher is None):
            return None
        data = cfg["data"]
        rows = data["micro_batch_size"] or data["batch_size"]
        tokens = data["tokens_per_batch"] or rows * data["max_length"]
        memory = training_memory(student, teacher, tokens, str(cfg["trainer"]["precision"]))
        if teacher is not None and not body:
            head: Any = teacher.get_output_embeddings()
            memory = replace(memory, teacher=head.weight.nbytes)
        return memory.total

    def _answers(self, cfg: Config) -> float | None:
        """Answers that the evaluation draws."""
        generation = cfg["generation"]
        tests = [name for name, source in cfg["data"]["test"].items() if source is not None]
        each = generation.get("samples", 1) * len(generation["seeds"])
        return _product(each, _sum(0, *(self._rows(cfg, "test", name) for name in tests)))

    def _rows(self, cfg: Config, split: str, name: str | None = None) -> int | None:
        data = cfg["data"]
        source = data[split] if name is None else data[split][name]
        limit = {"train": None, "valid": data["valid_rows"], "test": data["test_prompts"]}[split]
        examples = self._examples(source, data.get("fields"))
        return None if examples is None else min(len(examples), limit or len(examples))

    def _examples(self, source: Any, fields: Any) -> Sequence[Example] | None:
        name = source if isinstance(source, str) else f"{source['_target_']} ({source.get('split')})"
        return self._get(
            f"the number of rows of {name}",
            ["examples", source, fields],
            lambda: load_examples(instantiate(source) if isinstance(source, dict) else source, fields=fields),
        )

    def _tokenizer(self, cfg: Config) -> PreTrainedTokenizerBase | None:
        source = cfg["model"]["tokenizer"]
        name = source.get("path", "")
        return self._get(f"the tokenizer {name}".strip(), ["tokenizer", source], lambda: instantiate(source))

    def _skeleton(self, cfg: Config, role: str) -> PreTrainedModel | None:
        settings = {k: v for k, v in cfg["model"][role].items() if k != "sft"}
        source: ModelSource = instantiate(settings)
        tokenizer = self._tokenizer(cfg) if source.path is None else None
        if source.path is None and tokenizer is None:
            return None
        return self._get(
            f"the size of {source.path or role}",
            ["model", settings, cfg["model"]["tokenizer"]],
            lambda: source.skeleton(source.config(tokenizer)),  # type: ignore[arg-type]
        )

    def _lengths(self, cfg: Config) -> tuple[float | None, float | None]:
        """Mean tokens of a training row, and of its response."""
        tokenizer = self._tokenizer(cfg)
        examples = self._examples(cfg["data"]["train"], cfg["data"].get("fields"))
        if tokenizer is None or examples is None:
            return None, None

        def measure() -> tuple[float, float]:
            no_data: dict[str, Any] = {"train": None, "valid": None, "test": {}, "plain_text": None}
            data: InstructionData = instantiate({**cfg["data"], **no_data}, tokenizer=tokenizer)
            chosen = examples[:: max(1, len(examples) // SAMPLE)][:SAMPLE]
            rows = [data.encoder.example(example) for example in chosen]
            whole = sum(len(row.ids) for row in rows)
            return whole / len(rows), (whole - sum(row.n_prompt for row in rows)) / len(rows)

        found = self._get("the lengths of rows", ["lengths", _data_key(cfg)], measure)
        return (None, None) if found is None else found

    def _get(self, what: str, key: object, find: Callable[[], T]) -> T | None:
        """What `find` gives, asked once; None, and a word in `unknown`, where it cannot be had."""
        name = json.dumps(key, sort_keys=True, default=str)
        if name not in self._found:
            try:
                self._found[name] = find()
            except (ValueError, OSError, InstantiationException) as error:
                self._found[name] = None
                self.unknown[what] = _reason(error)
        found: T | None = self._found[name]
        return found


def show_plan(sweep: Sweep, console: Console | None = None) -> None:
    """Prints the runs of a sweep, done or to do, with what they take, and starts nothing.

    Raises:
        InputError: if a setting has no value.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160), file=console.file)
    with _hub_as_far_as_it_can_be_reached():
        plan, elsewhere, estimator = _plan(sweep)
    to_do = [entry for entry in plan if entry.state == "to do"]
    works = {key: work for entry in plan for key, work in entry.shared.items() if entry in to_do}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = _measured(plan, elsewhere)
    rate = RATES[device]

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Run", overflow="fold")
    table.add_column("State", no_wrap=True)
    for head in ("Steps", "Tokens", "Operations", "Time", "Memory", "Disk"):
        table.add_column(head, justify="right", no_wrap=True)
    for entry in plan:
        time = entry.seconds if entry.seconds is not None else seconds(entry, rate)
        table.add_row(
            escape(entry.text),
            entry.state.partition(":")[0],
            *_cells(entry.cost, time if entry.cost else None),
        )
    table.add_section()
    for work in works.values():
        time = 0.0 if work.done else _map(work.cost.operations, lambda n: n / rate)
        table.add_row(
            escape(f"once: {work.what}"), "done" if work.done else "to do", *_cells(work.cost, time)
        )
    console.print(f"Sweep {sweep.name} in {sweep.output_dir}: {len(plan)} runs", markup=False)
    console.print(table)

    open_works = [work for work in works.values() if not work.done]
    operations = _sum(
        *(entry.cost.operations for entry in to_do if entry.cost),
        *(w.cost.operations for w in open_works),
    )
    time = _sum(
        *(seconds(entry, rate) for entry in to_do),
        *(_map(w.cost.operations, lambda n: n / rate) for w in open_works),
    )
    disk = _sum(*(e.cost.disk for e in to_do if e.cost), *(w.cost.disk for w in open_works))
    memories = [entry.cost.memory for entry in to_do if entry.cost] + [w.cost.memory for w in open_works]
    extra = [entry.cost.checkpoints for entry in to_do if entry.cost]
    states = {state: sum(e.state.startswith(state) for e in plan) for state in ("done", "to do", "refused")}
    counts = ", ".join(f"{n} {state}" for state, n in states.items() if n)
    lines = [
        f"In all: {counts}; {_operations(operations)} operations, {_time(time)} of time, {_size(disk)} on "
        f"disk (and {_size(_most(extra))} of checkpoints while a run trains), "
        f"{_size(_most(memories))} of memory at most.",
        "Assumed: 6 operations for each weight and token of a model that is trained, 2 for one that is only "
        f"asked; answers as long as they may be; rows without padding, as long as {SAMPLE} of them are. Not "
        "counted: answers drawn during the training, the metrics, the memory of Python and its libraries "
        "(about 1 GB).",
        _rates_in_words(device, operations, any(entry.seconds for entry in (*plan, *elsewhere))),
    ]
    for why in dict.fromkeys(estimator.unknown.values()):
        lines.append(f"Not known: {', '.join(w for w, y in estimator.unknown.items() if y == why)} ({why}).")
    for reason in dict.fromkeys(e.state for e in plan if e.state.startswith("refused")):
        lines.append(f"R{reason[1:]} ({sum(e.state == reason for e in plan)} runs).")
    lines.append("Nothing was started.")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class _Entry:
    """A run of the plan."""

    text: str
    kind: tuple[object, str]
    """Of `Estimator.kind`."""
    state: str
    cost: Cost | None
    shared: dict[str, Once]
    seconds: float | None
    """That it took, where it is done."""


def _plan(sweep: Sweep) -> tuple[list[_Entry], list[_Entry], Estimator]:
    """The runs of a sweep, finished ones of their kinds elsewhere in the outputs, and what estimated them."""
    estimator = Estimator()
    entries = []
    outputs = set()
    for run, composed in sweep.configs():
        composed.logger = {}
        cfg = as_dict(composed)
        text = run.directory.name
        if len(text) >= LONGEST_NAME - 1:  # cut
            text += "\n" + " ".join(o for o in run.overrides if not o.startswith("output_dir="))
        cost: Cost | None = None
        shared: dict[str, Once] = {}
        seconds, state = None, "to do"
        try:
            parts_of(copy.deepcopy(cfg))
            cost, shared = estimator.run(cfg), estimator.shared(cfg)
        except (ValueError, InstantiationException) as error:
            state = f"refused: {_reason(error)}"  # as the run itself would be
        if run.finished:
            with contextlib.suppress(InputError):
                result = load(run.directory)
                seconds, state = _seconds(result), "done"
        entries.append(_Entry(text, estimator.kind(cfg), state, cost, shared, seconds))
        outputs.add(Path(cfg["prepared_dir"]).parent)
    kinds, planned = {entry.kind for entry in entries}, {run.directory.resolve() for run in sweep.runs()}
    folders = [file.parent for place in outputs for file in files_below(place, RESULT_FILE)]
    others = _finished(folder for folder in folders if folder.resolve() not in planned)
    return entries, [entry for entry in others if entry.kind in kinds], estimator


def _finished(folders: Iterable[Path]) -> list[_Entry]:
    """The runs in `folders` that were trained, as far as they can be read."""
    estimator, entries = Estimator(), []
    for folder in folders:
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError, InstantiationException):
            result = load(folder)
            if result.timings.get("train"):
                cfg = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["config"]
                entries.append(
                    _Entry(folder.name, estimator.kind(cfg), "done", estimator.run(cfg), {}, _seconds(result))
                )
    return entries


def _seconds(result: RunResult) -> float:
    return sum(result.timings.get(part, 0.0) for part in ("load", "train", "evaluate"))


def _measured(plan: Sequence[_Entry], elsewhere: Sequence[_Entry]) -> Callable[[_Entry, float], float | None]:
    """From a run and an assumed rate to its seconds: as finished runs of its student and data took, if any,
    those of the plan, or else others."""

    def seconds(entry: _Entry, rate: float) -> float | None:
        alike = [e for e in plan if e.seconds is not None and e.kind == entry.kind]
        alike = alike or [e for e in elsewhere if e.kind == entry.kind]
        own = entry.cost.operations if entry.cost else None
        if not alike:
            return None if own is None else own / rate
        took = sum(e.seconds or 0.0 for e in alike)
        theirs = _sum(*(e.cost.operations if e.cost else None for e in alike))
        return took / len(alike) if own is None or not theirs else float(took * own / theirs)

    return seconds


def _rates_in_words(device: str, operations: float | None, measured: bool) -> str:
    names = {"cpu": "a CPU of a few cores", "cuda": "an H100 kept busy"}
    text = f"Time: {names[device]} at an assumed {RATES[device]:.2g} operations a second"
    text += ", runs like finished ones as those took." if measured else "."
    other = "cuda" if device == "cpu" else "cpu"
    if operations is not None:
        text += f" At {RATES[other]:.2g}, {names[other]}: {_time(operations / RATES[other])}."
    return text


@contextlib.contextmanager
def _hub_as_far_as_it_can_be_reached() -> Iterator[None]:
    """Keeps from asking the hub again and again where it does not answer; what is in its cache is found."""
    before, verbosity = constants.HF_HUB_OFFLINE, transformers_logging.get_verbosity()
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # whatever the HTTP client of this version of the hub raises
        constants.HF_HUB_OFFLINE = True
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        transformers_logging.set_verbosity(verbosity)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error.__cause__ if isinstance(error, InstantiationException) else error).split())
    return "the hub does not answer, and its cache has none" if "hub" in text and _offline() else text


def _offline() -> bool:
    return bool(constants.HF_HUB_OFFLINE)


def _data_key(cfg: Config) -> str:
    names = ("train", "valid", "valid_rows", "template", "max_length", "max_prompt_length", "fields")
    return json.dumps(
        [cfg["model"]["tokenizer"], *(cfg["data"].get(name) for name in names)], sort_keys=True, default=str
    )


def _weights(model: PreTrainedModel) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _bytes(model: PreTrainedModel) -> int:
    return sum(weight.nbytes for weight in model.parameters())


def _state_bytes(model: PreTrainedModel) -> int:
    """Of the last hidden state of one position."""
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[1] * head.weight.dtype.itemsize)


def _disk(student: PreTrainedModel | None) -> tuple[float | None, float | None]:
    """Of the exported student, and of the two checkpoints with their optimiser's moments."""
    if student is None:
        return None, None
    trained = sum(3 * weight.nbytes for weight in student.parameters() if weight.requires_grad)
    return _bytes(student), 2 * trained


def _map(value: T | None, function: Callable[[T], Any]) -> Any:
    return None if value is None else function(value)


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if len(known) == len(values) else None


def _product(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return float(math.prod(known)) if len(known) == len(values) else None


def _most(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known, default=0.0) if len(known) == len(values) else None


def _cells(cost: Cost | None, seconds: float | None) -> list[str]:
    cost = cost or Cost()
    return [
        UNKNOWN if cost.steps is None else f"{cost.steps:,}" if cost.steps else "–",
        UNKNOWN if cost.tokens is None else _short(cost.tokens),
        _operations(cost.operations),
        _time(seconds),
        _size(cost.memory),
        _size(cost.disk),
    ]


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def _operations(number: float | None) -> str:
    return UNKNOWN if number is None else f"{number:.1e}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:.0f} s"


def _size(size: float | None) -> str:
    if size is None:
        return UNKNOWN
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
