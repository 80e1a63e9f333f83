"""Reads what run folders hold besides their records: answers, training curves, configurations."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amid.config.identity import leaves
from amid.config.run_settings import read_settings
from amid.errors import Damaged, InputError
from amid.files import check_regular, damaged
from amid.scoring.answers import REMEDY, answers_files, read_answers

_PLACES = ("hub", "output_dir", "prepared_dir", "logger", "threads", "data.cache_dir", "teacher.cache_dir")
"""Keys of a configuration that say where a run writes."""

ABSENT = "(absent)"
"""The value that stands for a key that a configuration does not have."""

_WITHOUT_CURVES = "delete the file, and the report is made without that run's curves"


@dataclass(frozen=True)
class Prompt:
    """A prompt of an evaluation set, with its references."""

    instruction: str
    input: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """One answer of a run to a prompt."""

    seed: int
    """The sampling seed."""
    text: str
    tokens: int | None
    ended: bool | None
    """Whether the answer ended with EOS; None, like `tokens`, if the file does not say."""


def sizes(folder: Path) -> dict[str, tuple[int, float]]:
    """Returns for each set of a run the number of prompts, and the mean bytes of a prompt with its answers.

    Raises:
        Damaged: naming a file that is not what the run wrote, or has fewer prompts than another seed's file.
    """
    found: dict[str, tuple[int, float]] = {}
    for name, files in answers_files(folder / "generations").items():
        for file in files.values():
            with file.open("rb") as lines:
                prompts = sum(1 for _ in lines)
            before = found.get(name, (prompts, 0.0))
            if prompts != before[0]:
                of_another = f"it has {prompts} lines, and that of another seed {before[0]}"
                raise damaged(file, of_another, REMEDY)
            found[name] = (prompts, before[1] + file.stat().st_size / max(1, prompts))
    return found


def answers(folder: Path, most: int) -> dict[str, dict[Prompt, list[Drawn]]]:
    """Reads a run's answers from `folder`/generations: set -> prompt -> answers, by sampling seed.

    It reads the first `most` prompts of each set and ignores unknown fields. The result is empty if the
    folder has no answers.

    Raises:
        InputError: naming a file and line that cannot be read.
    """
    sets: dict[str, dict[Prompt, list[Drawn]]] = {}
    for name, files in answers_files(folder / "generations").items():
        prompts = sets.setdefault(name, {})
        for seed, file in files.items():
            for answered in read_answers(file, most):
                prompt = Prompt(answered.instruction, answered.input, answered.references)
                drawn = [Drawn(seed, answer.text, answer.tokens, answer.ended) for answer in answered.answers]
                prompts.setdefault(prompt, []).extend(drawn)
    return sets


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Reads a run's training curves: name -> optimiser step -> value, in order of steps.

    It reads metrics.csv, and metrics-N.csv, the earlier parts of an interrupted run. If a step was done
    twice, the last value counts. It leaves out the scores of the evaluation sets. It also leaves out a last
    line without a line end, which a run is still writing or was writing when it was killed.

    Raises:
        InputError: naming a file with a value that is no number.
    """
    parts = sorted(folder.glob("metrics-*.csv"), key=lambda file: (len(file.name), file.name))
    found: dict[str, dict[int, float]] = {}
    for file in [*parts, *folder.glob("metrics.csv")]:
        try:
            check_regular(file, _WITHOUT_CURVES)
            written = file.read_text(encoding="utf-8")
            rows = list(csv.DictReader(io.StringIO(written[: written.rfind("\n") + 1])))
        except Damaged:
            raise
        except (ValueError, OSError, csv.Error) as error:
            raise damaged(file, error, _WITHOUT_CURVES) from error
        for row in rows:
            for name, text in row.items():
                if text and name not in ("epoch", "step") and not str(name).startswith("test/"):
                    try:
                        found.setdefault(name, {})[int(row["step"])] = float(text)
                    except (ValueError, KeyError, TypeError) as error:
                        raise InputError(
                            f"{file} has a line that is not numbers ({error}); {_WITHOUT_CURVES}"
                        ) from error
    return {name: dict(sorted(values.items())) for name, values in found.items()}


def configuration(folder: Path) -> dict[str, Any]:
    """Reads a run's configuration with dotted keys, without the places that it writes to; empty without one.

    If the configuration holds a value twice, such as `data.seed` beside an equal `seed`, only the shorter key
    stays.

    Raises:
        InputError: if config.yaml cannot be read.
    """
    settings = read_settings(folder, "delete it, and the report is made without that run's settings")
    if settings is None:
        return {}
    flat = dict(leaves(settings))
    places = tuple(f"{place}." for place in _PLACES)
    return {
        key: value
        for key, value in flat.items()
        if not f"{key}.".startswith(places) and not _said_shorter(key, value, flat)
    }


def differences(configurations: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the common part of all configurations, and the difference of each from the common part.

    The common part is what more than half of the configurations have. If a configuration lacks one of its
    keys, the difference is `ABSENT`, unless another value replaces the whole branch, such as
    `assistant: null`. Empty configurations are skipped.
    """
    known = [configuration for configuration in configurations if configuration]
    values: dict[str, list[Any]] = {}
    for configuration in known:
        for key, value in configuration.items():
            values.setdefault(key, []).append(value)
    common = {
        key: value
        for key, found in values.items()
        if 2 * found.count(value := max(found, key=found.count)) > len(known)
    }

    def own(configuration: Mapping[str, Any]) -> dict[str, Any]:
        if not configuration:
            return {}
        differing = {k: v for k, v in configuration.items() if k not in common or common[k] != v}
        lacking = (k for k in common if k not in configuration and not _in_place(k, configuration))
        return differing | dict.fromkeys(lacking, ABSENT)

    return common, [own(configuration) for configuration in configurations]


def thinned(curve: Mapping[int, float], points: int) -> list[tuple[int, float]]:
    """Returns at most `points` (two or more) finite points of a curve, evenly spaced, with both ends."""
    steps = list(curve)
    if len(steps) > points:
        steps = [steps[round(i * (len(steps) - 1) / (points - 1))] for i in range(points)]
    return [(step, curve[step]) for step in steps if math.isfinite(curve[step])]


def _in_place(key: str, configuration: Mapping[str, Any]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:end]) in configuration for end in range(1, len(parts)))


def _said_shorter(key: str, value: Any, flat: Mapping[str, Any]) -> bool:
    parts = key.split(".")
    tails = (".".join(parts[start:]) for start in range(1, len(parts)))
    return any(tail in flat and flat[tail] == value for tail in tails if tail != "_target_")
