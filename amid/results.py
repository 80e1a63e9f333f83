"""The record of a finished run: typed, written and read as `result.json`."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from amid.errors import Damaged, InputError
from amid.files import check_sums, damaged, json_with_sum, read_mapping, sums_of, written_whole
from amid.measures import OF_ANSWERS, VALIDATION, k_of, measure_of

RESULT_FILE = "result.json"
CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""

BEST = Path(CHECKPOINTS) / "best"
"""The folder with a finished run's student, as `save_pretrained` writes it."""

ADAPTER = Path(CHECKPOINTS) / "adapter"
"""The folder with the adapters of a finished run with LoRA, before they were merged, as PEFT writes them."""

SCHEMA = 1
"""Version of the file's layout, raised when a reader of the old one would misread the new one."""

SKIPPED_FOLDERS = frozenset({"report", "prepared"})
"""Folders that `load_all` does not enter: they hold what was made from runs, or for them."""

Label = str | int | float | bool | None

FAR_WORSE = 2.0
"""A run got far worse if its validation cross-entropy rose by more than this, in nats a token."""

COLLAPSE_SHARE = 0.5
"""A student has collapsed if its validation score is below this share of the score before training."""

T = TypeVar("T")


def quality_metrics(measured: Iterable[Iterable[str]]) -> list[str]:
    """Returns the quality metrics among the metrics measured on each set, the main one first.

    Higher is better in all of them. Exact match is included only if there is no other quality metric. pass@k
    is left out: it is the main metric over several answers.
    """
    found = dict.fromkeys(name for names in measured for name in names)
    metrics = [name for name in found if name not in OF_ANSWERS and k_of(name) is None]
    return [name for name in metrics if name != "exact_match"] or metrics


@dataclass(frozen=True)
class Score:
    """One metric on one evaluation set: its values over several seeds, and their mean and spread."""

    mean: float
    std: float | None
    """Sample standard deviation (divided by n - 1); None for a single value."""
    values: list[float]
    """One per seed, in the order of the seeds."""
    signature: str | None = None
    """How the metric was computed, if its name alone does not say so."""

    def __eq__(self, other: object) -> bool:
        """Whether all numbers and the signature are equal, where NaN equals NaN."""
        if not isinstance(other, Score):
            return NotImplemented
        numbers = ([of.mean, of.std, *of.values] for of in (self, other))
        alike = len(self.values) == len(other.values) and self.signature == other.signature
        return alike and all(a == b or (a != a and b != b) for a, b in zip(*numbers, strict=True))

    @classmethod
    def over_seeds(cls, values: Sequence[float], signature: str | None = None) -> "Score":
        """Computes mean and sample standard deviation of one value per seed; NaN if a value is NaN.

        Raises:
            ValueError: for no values.
        """
        if not values:
            raise ValueError("a score needs at least one value, got none")
        numbers = [float(value) for value in values]
        mean = sum(numbers) / len(numbers)
        if len(numbers) == 1:
            return cls(mean, None, numbers, signature)
        deviations = [number - mean for number in numbers]
        variance = sum(deviation * deviation for deviation in deviations) / (len(numbers) - 1)
        return cls(mean, math.sqrt(variance), numbers, signature)


@dataclass(frozen=True)
class RunResult:
    """The settings and scores of one run: all that tables and figures need."""

    name: str
    """The run's name, such as that of its folder."""
    labels: dict[str, Label]
    """The labels that separate runs, except the seed: runs with equal labels are repetitions.

    At least `method`, `model`, `data`, `divergence`, `assistant`, `alpha`, `lam` and `order`; `alpha` and
    `lam` are None without an assistant.
    """
    config_hash: str
    seed: int
    """The training seed."""
    scores: dict[str, dict[str, Score]]
    """The scores of each evaluation set, by metric (`rouge_l`, `self_bleu`, ...), over the sampling seeds.

    A diverged run has no scores: the mapping of each of its sets is empty.
    """
    training: dict[str, float]
    """Numbers about the training.

    The measures in `RUN` of `amid.measures` are in seconds and bytes. The measures in `VALIDATION` and the
    score of validation answers are called `valid_NAME`. They are taken from the student that is kept;
    `valid_NAME_before` is taken before the first step, `valid_cross_entropy_last` after the last one. The
    numbers of a resumed run cover all its processes.
    """
    timings: dict[str, float]
    """Seconds of each part of the run. After a resume, `train` covers all processes, other parts the last."""
    versions: dict[str, str]
    """The versions of the packages that the numbers depend on."""
    ladders: dict[str, dict[float, dict[str, dict[str, Score]]]] = field(default_factory=dict)
    """The scores at other temperatures ("temperature") or other top-p ("top_p"), each a `scores` by rung.

    A rung that equals the run's own temperature or top-p has the scores of `scores`. Empty without ladders.
    """
    files: dict[str, str] = field(default_factory=dict)
    """Checksums of the student's files and of the curves (`sums_of_run`), by their paths in the run's folder;
    empty if an earlier version of amid wrote the record."""

    @property
    def diverged_step(self) -> int | None:
        """The optimiser step, from 1, that ended the run because its loss or gradient was not finite."""
        step = self.training.get("diverged_step")
        return None if step is None else int(step)

    @property
    def far_worse(self) -> str:
        """Names the validation measures that got far worse in training, with both numbers; empty for none.

        The cross-entropy got far worse if it rose by more than `FAR_WORSE` nats a token, or is NaN, for the
        student that is kept or for the last one. A score of answers got far worse if it was at least 1 and
        fell below `COLLAPSE_SHARE` of its value before the training.
        """
        told: list[str] = []
        measure = VALIDATION["cross_entropy"]
        before = self.training.get("valid_cross_entropy_before", math.nan)
        for name, whose in (("cross_entropy", "after it"), ("cross_entropy_last", "at its end")):
            after = self.training.get(f"valid_{name}")
            if after is not None and math.isfinite(before) and not after <= before + FAR_WORSE and not told:
                numbers = f"{measure.number(before)} before the training, {measure.number(after)} {whose}"
                told.append(f"{measure.title.lower()} {numbers}")
        for metric, (before, after) in self.validation_scores.items():
            measure = measure_of(metric)
            if before >= 1 and after < COLLAPSE_SHARE * before:
                numbers = f"{measure.number(before)} before the training, {measure.number(after)} after it"
                told.append(f"{measure.title} {numbers}")
        return "; ".join(told) if self.training.get("steps") else ""

    @property
    def validation_scores(self) -> dict[str, tuple[float, float]]:
        """Returns the scores of validation answers, by metric: before the training, and for the kept student.

        A score that was not taken, such as the second score of a diverged run, is NaN.
        """
        names = [name.removeprefix("valid_") for name in self.training if name.startswith("valid_")]
        metrics = dict.fromkeys(name.removesuffix("_before").removesuffix("_last") for name in names)
        return {
            name: (
                self.training.get(f"valid_{name}_before", math.nan),
                self.training.get(f"valid_{name}", math.nan),
            )
            for name in metrics
            if name not in VALIDATION
        }

    @property
    def own_seconds(self) -> float:
        """The seconds of the run, without the work that runs share: fine-tuning and the teacher's states."""
        return sum(self.timings.get(part, 0.0) for part in ("load", "train", "evaluate"))


def average_scores(result: RunResult) -> dict[str, float]:
    """Returns the mean over the sets of each metric that all evaluation sets of a run have."""
    sets = [by for by in result.scores.values() if by]
    shared = [name for name in (sets[0] if sets else {}) if all(name in by for by in sets)]
    return {name: sum(by[name].mean for by in sets) / len(sets) for name in shared}


def save(result: RunResult, directory: str | Path) -> Path:
    """Writes `directory`/result.json, whole or not at all, also if the process or the machine dies.

    The folder is made if needed; an older record in it is replaced. NaN and infinities are written as the
    strings "nan", "inf" and "-inf", so that the file is valid JSON.

    Returns:
        The path of the file.

    Raises:
        TypeError: if a label is not a string, number, boolean or None.
    """
    for label, value in result.labels.items():
        if not isinstance(value, Label):
            raise TypeError(f"label {label!r} must be a string, number, boolean or None, got {value!r}")
    text = json_with_sum(_encode(result), ascii=False)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / RESULT_FILE
    with written_whole(target) as part:
        part.write_text(text, encoding="utf-8")
    return target


def load(path: str | Path) -> RunResult:
    """Reads the record of a run from its folder, or from the file itself.

    Raises:
        InputError: if there is no record, it is damaged, or another version of the package wrote it.
    """
    path = Path(path)
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        record = read_mapping(file, REMEDY)
    except Damaged as error:
        raise Damaged(f"result {error}") from error
    if record is None:
        raise InputError(
            f"result {file} does not exist: there is no finished run; give the folder of a run that holds "
            f"{RESULT_FILE}{run_below(path)}, or let the run finish"
        )
    schema = record.get("schema")
    if schema != SCHEMA:
        raise InputError(
            f"result {file} has schema {schema!r}, this version of amid reads {SCHEMA}; "
            "read it with the version that wrote it, or delete the file and run again"
        )
    try:
        return _decode(record)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise Damaged(f"result {damaged(file, reason, REMEDY)}") from error


REMEDY = "delete it and run again"


def sums_of_run(directory: Path) -> dict[str, str]:
    """Returns the checksums of the files that a finished run keeps: student, adapters and curves."""
    kept = [file for folder in (BEST, ADAPTER) for file in (directory / folder).glob("*")]
    return sums_of(directory, [*kept, *directory.glob("metrics*.csv")])


def check_student(directory: Path, result: RunResult, remedy: str, folder: Path = BEST) -> None:
    """Checks that the files of a run's student, or of its adapters, are the files that the run wrote.

    Raises:
        Damaged: naming the file.
    """
    sums = {name: found for name, found in result.files.items() if Path(name).parent == folder}
    check_sums(directory, sums, remedy)


def check_curves(directory: Path, result: RunResult) -> None:
    """Checks that the files of a run's curves are the files that the run wrote.

    Raises:
        Damaged: naming the file.
    """
    for name, found in result.files.items():
        if name.endswith(".csv") and (directory / name).exists():
            remedy = "delete the file, and the report is made without that run's curves"
            check_sums(directory, {name: found}, remedy)


def load_all(directory: str | Path) -> list[RunResult]:
    """Returns every record with scores, or of a diverged run, below `directory`, sorted by path.

    It does not enter hidden folders and folders named report or prepared.

    Raises:
        InputError: if `directory` is not a folder, or naming the first file that cannot be read.
    """
    return list(load_folders(directory).values())


def load_folders(directory: str | Path) -> dict[Path, RunResult]:
    """Returns the records of `load_all`, by the folder of the run.

    Raises:
        InputError: if `directory` is not a folder, or naming the first file that cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"{directory} is neither a folder nor a zip file; give one that holds finished runs, such as "
            "outputs/alpha"
        )
    files = files_below(directory, RESULT_FILE)
    return {file.parent: result for file in files if (result := load(file)).scores}


def run_below(folder: Path) -> str:
    """Returns `, such as RUN` for a finished run below a folder that is no run itself; empty without one."""
    runs = sorted(file.parent for file in folder.glob(f"*/{RESULT_FILE}"))
    return f", such as {runs[0]}" if runs else ""


def files_below(directory: Path, name: str) -> list[Path]:
    """Returns the files of a name in `directory` and below, sorted, except hidden and `SKIPPED_FOLDERS`."""
    files = []
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = [sub for sub in subfolders if sub not in SKIPPED_FOLDERS and not sub.startswith(".")]
        if name in names:
            files.append(Path(folder, name))
    return sorted(files)


def _encode(result: RunResult) -> dict[str, Any]:
    def numbers(values: Mapping[str, float]) -> dict[str, Label]:
        return {key: _to_json(float(value)) for key, value in values.items()}

    ladders = {
        ladder: {str(float(rung)): _scores_to_json(scores) for rung, scores in rungs.items()}
        for ladder, rungs in result.ladders.items()
    }
    return {
        "schema": SCHEMA,
        "name": result.name,
        "labels": {key: _to_json(value) for key, value in result.labels.items()},
        "config_hash": result.config_hash,
        "seed": result.seed,
        "scores": _scores_to_json(result.scores),
        **({"ladders": ladders} if ladders else {}),
        "training": numbers(result.training),
        "timings": numbers(result.timings),
        "versions": result.versions,
        **({"files": result.files} if result.files else {}),
    }


def _scores_to_json(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    return {
        dataset: {
            metric: {
                "mean": _to_json(float(score.mean)),
                "std": None if score.std is None else _to_json(float(score.std)),
                "values": [_to_json(float(value)) for value in score.values],
                **({} if score.signature is None else {"signature": score.signature}),
            }
            for metric, score in metrics.items()
        }
        for dataset, metrics in scores.items()
    }


def _decode(record: dict[str, Any]) -> RunResult:
    return RunResult(
        name=_string(record["name"]),
        labels=_mapping(record["labels"], _label),
        config_hash=_string(record["config_hash"]),
        seed=_integer(record["seed"]),
        scores=_scores(record["scores"]),
        ladders=_mapping(record.get("ladders", {}), _rungs),
        training=_training(record["training"]),
        timings=_mapping(record["timings"], _seconds),
        versions=_mapping(record["versions"], _string),
        files=_mapping(record.get("files", {}), _string),
    )


def _scores(value: Any) -> dict[str, dict[str, Score]]:
    return _mapping(value, lambda metrics: _mapping(metrics, _score))


def _rungs(value: Any) -> dict[float, dict[str, dict[str, Score]]]:
    found = {float(rung): scores for rung, scores in _mapping(value, _scores).items()}
    if not all(math.isfinite(rung) and rung >= 0 for rung in found):
        raise ValueError(f"a ladder has the rungs {', '.join(map(str, found))}, not all finite and from 0")
    return found


def _training(value: Any) -> dict[str, float]:
    training = _mapping(value, _number)
    for name in ("steps", "diverged_step"):
        if not training.get(name, 0.0).is_integer() or training.get(name, 0.0) < 0:
            raise ValueError(f"training.{name}: {training[name]} is no number of steps")
    return training


NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _to_json(value: Label) -> Label:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float:
    if isinstance(value, str):
        value = NON_FINITE.get(value, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("a number is too large") from error


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{value!r} is no number of seconds")
    return seconds


LONGEST_TEXT = 4000
"""Characters of a label, or of another text in a result: tables and pages show them."""


def _label(value: Any) -> Label:
    if not isinstance(value, Label):
        raise TypeError(f"the label {value!r} is not a single value")
    if isinstance(value, str):
        _string(value)
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{value[:20]}… has {len(value):,} characters, and may have {LONGEST_TEXT:,}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _score(record: Any) -> Score:
    if not isinstance(record, dict) or not isinstance(record["values"], list):
        raise TypeError(f"{record!r} is not a score")
    if not record["values"]:
        raise ValueError("a score has no values")
    std = record["std"]
    return Score(
        mean=_number(record["mean"]),
        std=None if std is None else _number(std),
        values=[_number(value) for value in record["values"]],
        signature=None if record.get("signature") is None else _string(record["signature"]),
    )


def _mapping(value: Any, read: Callable[[Any], T]) -> dict[str, T]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return {_string(key): read(item) for key, item in value.items()}
