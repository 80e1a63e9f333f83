"""Systems whose answers are scored: runs and files, and which of them answer the same prompts."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from hydra.utils import instantiate

from amid.config.folders import CONF
from amid.config.run_settings import CONFIG_FILE, Stored, read_settings
from amid.errors import InputError, choose_one, first_line
from amid.files import damaged
from amid.measures import SCORES
from amid.metrics import Metric, tokenize_of
from amid.results import run_below
from amid.scoring.answers import Answered, answers_files, read_answers
from amid.scoring.scores import tokenize_for_answers


def _known() -> dict[str, Metric]:
    """What the files of conf/data/metrics name, each as the first that has it, in the order of reports."""
    found: dict[str, Any] = {}
    for file in sorted((CONF / "data" / "metrics").glob("*.yaml")):
        found = yaml.safe_load(file.read_text(encoding="utf-8")) | found
    order = list(SCORES)
    names = sorted(found, key=lambda name: order.index(name) if name in order else len(order))
    return {name: instantiate(found[name]) for name in names}


KNOWN = _known()
"""The metrics that the data sets of this project are scored by."""
ALWAYS = ("rouge_l", "rouge_1", "rouge_2", "exact_match")
"""Those of `KNOWN` that any answers are scored by."""


@dataclass(frozen=True)
class System:
    """The answers of one model to one set: prompt by prompt for each seed."""

    name: str
    dataset: str
    by_seed: list[list[Answered]]
    metrics: Mapping[str, Metric]
    """Those that a run names, the main one first, and those of all."""
    tokenize: str | None = None
    """What splits text into words, where it is chosen for all scores."""

    @property
    def words(self) -> str:
        """What splits its answers into words where they are held against each other."""
        return self.tokenize or tokenize_for_answers(self.metrics)

    def only(self, prompts: Sequence[int]) -> list[list[Answered]]:
        """The answers to these prompts."""
        return [[answered[i] for i in prompts] for answered in self.by_seed]


def read_systems(paths: Sequence[Path], tokenize: str | None = None, trust: bool = False) -> list[System]:
    """The sets of each run's folder, and each file as a set of its own.

    Their metrics split text into words as they are set to, or all by `tokenize`; those of all as a run's own.

    Args:
        paths: of runs and files.
        tokenize: what splits text into words.
        trust: whether a run may name metrics that are not amid's, whose code is then run.

    Raises:
        InputError: naming what cannot be read or is not what a run wrote, or names code.
    """
    places = [path.resolve() for path in paths]
    places = [place.parent if place.name == "generations" and place.is_dir() else place for place in places]
    systems = []
    for place, path, name in zip(places, paths, _names(places), strict=True):
        if not path.is_dir():
            metrics = tokenized({metric: KNOWN[metric] for metric in ALWAYS}, tokenize)
            systems.append(System(name, "", [read_answers(path)], metrics, tokenize))
            continue
        folder = place / "generations" if (place / "generations").is_dir() else place
        sets = answers_files(folder)
        if not sets:
            raise InputError(
                f"{path} holds no generations/SET-SEED.jsonl; give the folder of a finished run"
                f"{run_below(place)}"
            )
        metrics = tokenized(_of_run(place, trust), tokenize)
        own = tokenize_of(metrics["rouge_l"]) if "rouge_l" in metrics else tokenize
        metrics |= tokenized({metric: KNOWN[metric] for metric in ALWAYS if metric not in metrics}, own)
        for dataset, files in sets.items():
            by_seed = [read_answers(file) for file in files.values()]
            for answered in by_seed:
                _check_same_prompts(f"{name} {dataset}", by_seed[0], f"{name} {dataset}", answered)
            systems.append(System(name, dataset, by_seed, metrics, tokenize))
    return _of_the_same_prompts(systems)


def tokenized(metrics: Mapping[str, Metric], tokenize: str | None) -> dict[str, Metric]:
    """The metrics, those that split text into words by `tokenize`; None leaves them as they are."""
    own: Mapping[str, Any] = metrics
    return {
        name: partial(metric, tokenize=tokenize) if tokenize and tokenize_of(metric) else metric
        for name, metric in own.items()
    }


def _of_the_same_prompts(systems: Sequence[System]) -> list[System]:
    """The systems, those of files as answers to the set of another one that has the same prompts.

    Its rows may stand in any order: prompts are the same where instruction, input and references are, or,
    in a file without instructions, the references.
    """
    found = [system for system in systems if system.dataset]
    placed = []
    for system in systems:
        if not system.dataset:
            for other in found:
                if (order := _order(system.by_seed[0], other.by_seed[0])) is not None:
                    system = replace(system, by_seed=system.only(order), dataset=other.dataset)
                    break
            found.append(system)
        placed.append(system)
    return placed


def _order(rows: Sequence[Answered], wanted: Sequence[Answered]) -> list[int] | None:
    """Where the prompts of `wanted` stand in `rows`; None if they are other ones."""
    key = _key(rows, wanted)
    places: dict[tuple[object, ...], list[int]] = {}
    for place, row in reversed(list(enumerate(rows))):
        places.setdefault(key(row), []).append(place)
    if len(rows) != len(wanted):
        return None
    found = [places[key(row)].pop() for row in wanted if places.get(key(row))]
    return found if len(found) == len(wanted) else None


def _key(rows: Sequence[Answered], others: Sequence[Answered]) -> Callable[[Answered], tuple[object, ...]]:
    """What makes prompts the same: all of them, or in a file without instructions the references."""
    instructed = all(row.instruction for row in (*rows, *others))
    return lambda row: (row.instruction, row.input, row.references) if instructed else row.references


def in_common(system: System, other: System) -> int:
    """How many of the prompts of a system another one answers."""
    rows, others = system.by_seed[0], other.by_seed[0]
    key = _key(rows, others)
    return sum((Counter(map(key, rows)) & Counter(map(key, others))).values())


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest end of each path, without the suffix of a file, that no other one of them has.

    Of the KEY=VALUE of runs' folders, those that all have are left out.
    """
    parts = [
        place.parts if place.is_dir() else (*place.parts[:-1], place.stem if place.suffix else place.name)
        for place in places
    ]

    def name(place: Path, own: tuple[str, ...]) -> str:
        others = {theirs for theirs, other in zip(parts, places, strict=True) if other != place}
        for n in range(1, len(own)):
            if all(theirs[-n:] != own[-n:] for theirs in others):
                return "/".join(own[-n:])
        return str(place)

    names = [name(place, own) for place, own in zip(places, parts, strict=True)]
    settings = [name.split(",") for name in names]
    own = [",".join(s for s in of if not all(s in others for others in settings)) for of in settings]
    return own if all(own) and len(set(own)) == len(set(names)) else names


def _of_run(directory: Path, trust: bool) -> dict[str, Metric]:
    """The metrics that a run's configuration names, the main one first; none where it has none."""
    settings = read_settings(directory, _WITHOUT)
    if settings is None:
        return {}
    data = settings.get("data")
    metrics = data.get("metrics") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(metrics, dict | None):
        raise damaged(directory / CONFIG_FILE, "it has no data.metrics", _WITHOUT)
    Stored(directory, trust, "--trust-run").check(metrics or {}, "data", "metrics")
    try:
        found = {str(name): instantiate(node) for name, node in (metrics or {}).items()}
    except HydraException as error:
        raise InputError(
            f"{directory / CONFIG_FILE} names data.metrics that cannot be had ({first_line(error)}); install "
            "or repair what they are from"
        ) from error
    if uncallable := [name for name, metric in found.items() if not callable(metric)]:
        raise damaged(directory / CONFIG_FILE, f"data.metrics.{uncallable[0]} is no metric", _WITHOUT)
    return dict(sorted(found.items(), key=lambda metric: metric[0] != data.get("valid_metric")))


_WITHOUT = "delete it, and the answers are scored by the usual metrics"


def metric_of(name: str, systems: Sequence[System]) -> Metric:
    """What `name` is, to the first of the systems that has it."""
    for metrics in [*(system.metrics for system in systems), KNOWN]:
        if name in metrics:
            return tokenized({name: metrics[name]}, systems[0].tokenize)[name]
    known = list(dict.fromkeys([*KNOWN, *(metric for system in systems for metric in system.metrics)]))
    raise InputError(f"--metric={name} is no metric of these answers{choose_one(name, known)}")


def rivals(systems: Sequence[System]) -> list[list[System]]:
    """The systems with answers to the same prompts of a set, those of each in one order."""
    groups: list[list[System]] = []
    for system in systems:
        for group in groups:
            order = _order(system.by_seed[0], group[0].by_seed[0])
            if system.dataset == group[0].dataset and order is not None:
                group.append(replace(system, by_seed=system.only(order)))
                break
        else:
            groups.append([system])
    return groups


def main_metric(systems: Sequence[System]) -> str:
    """That of the first run which names metrics; else the first of `ALWAYS`."""
    own = [system.metrics for system in systems if list(system.metrics) != list(ALWAYS)]
    return next(iter(own[0])) if own else ALWAYS[0]


def _check_same_prompts(one: str, first: Sequence[Answered], other: str, second: Sequence[Answered]) -> None:
    for number, (a, b) in enumerate(itertools.zip_longest(first, second), 1):
        if a is None or b is None or a.references != b.references:
            raise InputError(
                f"{one} and {other} do not answer the same prompts: they differ at prompt {number}; "
                "score them apart"
            )
