"""Systems to score: runs and files of answers, and which of them answer the same prompts."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from hydra.utils import instantiate

from amid.config.folders import CONF
from amid.config.ladders import LADDERS, Rung, rungs_of
from amid.config.run_settings import CONFIG_FILE, Stored, read_settings
from amid.errors import InputError, choose_one, first_line
from amid.files import damaged
from amid.measures import in_order
from amid.metrics import Metric, tokenize_of
from amid.results import run_below
from amid.scoring.answers import Answered, answers_files, read_answers
from amid.scoring.scores import tokenize_for_answers


def _known() -> dict[str, Metric]:
    """Returns the metrics that the files in conf/data/metrics name, in the order of reports.

    If several files name a metric, the first file defines it.
    """
    found: dict[str, Any] = {}
    for file in sorted((CONF / "data" / "metrics").glob("*.yaml")):
        found = yaml.safe_load(file.read_text(encoding="utf-8")) | found
    return {name: instantiate(found[name]) for name in in_order(found)}


KNOWN = _known()
"""The metrics that the data sets of this project are scored by."""
ALWAYS = ("rouge_l", "rouge_1", "rouge_2", "exact_match")
"""The metrics in `KNOWN` that score any answers."""


@dataclass(frozen=True)
class System:
    """The answers of one model to one set: prompt by prompt for each seed."""

    name: str
    dataset: str
    by_seed: list[list[Answered]]
    metrics: Mapping[str, Metric]
    """The metrics that a run names, the main one first, then the metrics of all answers (`ALWAYS`)."""
    tokenize: str | None = None
    """The tokeniser, if the user chose one for all scores."""
    pass_at: tuple[int, ...] = ()
    """Each k of pass@k: the user's choice, or a run's own `data.pass_at`."""
    of: str = ""
    """The name of the system whose answers these are at the `rungs` of its ladders."""
    rungs: tuple[Rung, ...] = ()
    drawn_at: Mapping[str, float] = field(default_factory=dict)
    """The temperature and the top-p that the answers were drawn at, by the name of the ladder, if known."""

    @property
    def words(self) -> str:
        """The tokeniser that splits its answers into words when answers are compared with each other."""
        return self.tokenize or tokenize_for_answers(self.metrics)

    def only(self, prompts: Sequence[int]) -> list[list[Answered]]:
        """Returns the answers to these prompts."""
        return [[answered[i] for i in prompts] for answered in self.by_seed]


def read_systems(
    paths: Sequence[Path],
    tokenize: str | None = None,
    trust: bool = False,
    pass_at: tuple[int, ...] | None = None,
) -> list[System]:
    """Reads the sets in each run's folder, and each file as a set of its own.

    A run with ladders gives a system for each rung, with a name such as `RUN@0.4`. A file `NAME@0.4.jsonl`
    has the answers of the system NAME at temperature 0.4.

    Without `tokenize`, each metric of a run splits text into words by its own setting. The metrics `ALWAYS`
    follow the run's metrics and split text like the run's ROUGE-L.

    Args:
        paths: the paths of runs and files.
        tokenize: the tokeniser of all metrics; None for their own settings.
        trust: whether a run may name metrics from outside amid; their code then runs.
        pass_at: each k of pass@k; None for a run's own, and for no pass@k of files.

    Raises:
        InputError: naming a file that cannot be read, is not what a run wrote, or names code; or a system
            that has fewer answers to a prompt than a k.
    """
    places = [path.resolve() for path in paths]
    places = [place.parent if place.name == "generations" and place.is_dir() else place for place in places]
    systems = []
    for place, path, name in zip(places, paths, _names(places), strict=True):
        if not path.is_dir():
            metrics = tokenized({metric: KNOWN[metric] for metric in ALWAYS}, tokenize)
            of, rungs = _named_rung(name)
            answers = [read_answers(path)]
            drawn_at = {rung.ladder: rung.value for rung in rungs}
            systems.append(System(name, "", answers, metrics, tokenize, pass_at or (), of, rungs, drawn_at))
            continue
        folder = place / "generations" if (place / "generations").is_dir() else place
        sets = answers_files(folder)
        if not sets:
            raise InputError(
                f"{path} holds no generations/SET-SEED.jsonl; give the folder of a finished run"
                f"{run_below(place)}"
            )
        of_run, own_pass_at = _of_run(place, trust)
        metrics = tokenized(of_run, tokenize)
        own = tokenize_of(metrics["rouge_l"]) if "rouge_l" in metrics else tokenize
        metrics |= tokenized({metric: KNOWN[metric] for metric in ALWAYS if metric not in metrics}, own)
        of_set = own_pass_at if pass_at is None else pass_at
        own_rung = _own_rung(place)
        for at, rungs in _rung_folders(place, folder).items():
            drawn_at = own_rung | {rung.ladder: rung.value for rung in rungs}
            called = name if at == folder else f"{name}@{rungs[0]}"
            for dataset, files in (sets if at == folder else answers_files(at)).items():
                by_seed = [read_answers(file) for file in files.values()]
                for answered in by_seed:
                    _check_same_prompts(f"{called} {dataset}", by_seed[0], f"{called} {dataset}", answered)
                systems.append(
                    System(called, dataset, by_seed, metrics, tokenize, of_set, name, rungs, drawn_at)
                )
    _check_rungs(systems)
    for system in systems:
        check_pass_at(system)
    return _of_the_same_prompts(systems)


def _named_rung(name: str) -> tuple[str, tuple[Rung, ...]]:
    """Returns the system and the temperature that the name of a file says, as in `NAME@0.4`."""
    of, _, value = name.rpartition("@")
    try:
        temperature = float(value)
    except ValueError:
        return name, ()
    return (of, (Rung("temperature", temperature),)) if of and 0 <= temperature < inf else (name, ())


def _check_rungs(systems: Sequence[System]) -> None:
    """Raises InputError for two files of one system at one temperature, such as NAME@0.3 and NAME@0.30."""
    known: dict[tuple[str, str, Rung], str] = {}
    for system in systems:
        for rung in system.rungs:
            other = known.setdefault((system.of, system.dataset, rung), system.name)
            if other != system.name:
                raise InputError(
                    f"{other} and {system.name} are both the answers of {system.of} at {rung.ladder} "
                    f"{rung.value:g}; rename one file"
                )


def _own_rung(place: Path) -> dict[str, float]:
    """Returns the temperature and the top-p of a run's own answers, as far as its settings say them."""
    generation: Any = (read_settings(place, _WITHOUT) or {}).get("generation")
    own = generation if isinstance(generation, dict) else {}
    return {ladder: float(own[ladder]) for ladder in LADDERS if isinstance(own.get(ladder), int | float)}


def _rung_folders(place: Path, folder: Path) -> dict[Path, tuple[Rung, ...]]:
    """Returns the folders of a run's answers, with the rungs of its ladders that each holds."""
    generation: Any = (read_settings(place, _WITHOUT) or {}).get("generation")
    rungs = rungs_of(generation) if isinstance(generation, dict) else []
    own = tuple(rung for rung in rungs if rung.value == generation.get(rung.ladder))
    others = {folder / rung.folder: (rung,) for rung in rungs if rung not in own}
    return {folder: own} | {at: of for at, of in others.items() if at.is_dir()}


def tokenized(metrics: Mapping[str, Metric], tokenize: str | None) -> dict[str, Metric]:
    """Returns the metrics; metrics that split text into words use `tokenize`, unless it is None."""
    own: Mapping[str, Any] = metrics
    return {
        name: partial(metric, tokenize=tokenize) if tokenize and tokenize_of(metric) else metric
        for name, metric in own.items()
    }


def _of_the_same_prompts(systems: Sequence[System]) -> list[System]:
    """Returns the systems; a file becomes answers to the set of another system with the same prompts.

    The rows of the file may stand in any order. Two prompts are the same if instruction, input and references
    are equal. In a file without instructions, only the references count.
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
    """Returns the places in `rows` of the prompts of `wanted`; None if the prompts differ."""
    key = _key(rows, wanted)
    places: dict[tuple[object, ...], list[int]] = {}
    for place, row in reversed(list(enumerate(rows))):
        places.setdefault(key(row), []).append(place)
    if len(rows) != len(wanted):
        return None
    found = [places[key(row)].pop() for row in wanted if places.get(key(row))]
    return found if len(found) == len(wanted) else None


def _key(rows: Sequence[Answered], others: Sequence[Answered]) -> Callable[[Answered], tuple[object, ...]]:
    """Returns the key that equal prompts share: all their fields, or only references without instructions."""
    instructed = all(row.instruction for row in (*rows, *others))
    return lambda row: (row.instruction, row.input, row.references) if instructed else row.references


def in_common(system: System, other: System) -> int:
    """Returns how many prompts of a system the other system answers, too."""
    rows, others = system.by_seed[0], other.by_seed[0]
    key = _key(rows, others)
    return sum((Counter(map(key, rows)) & Counter(map(key, others))).values())


def _names(places: Sequence[Path]) -> list[str]:
    """Returns the shortest end of each path that no other system's path shares, without a file's suffix.

    The files NAME@TEMPERATURE of a folder are of one system. The KEY=VALUE parts that all names of run
    folders share are left out.
    """
    stems = [place.name if place.is_dir() or place.suffix[1:].isdecimal() else place.stem for place in places]
    ends = [
        stem if place.is_dir() else _named_rung(stem)[0] for stem, place in zip(stems, places, strict=True)
    ]
    rungs = [stem.removeprefix(end) for stem, end in zip(stems, ends, strict=True)]
    parts = [(*place.parts[:-1], end) for place, end in zip(places, ends, strict=True)]

    def name(place: Path, own: tuple[str, ...], rung: str) -> str:
        alike = any(
            other != place and theirs == own and (at == rung or place.is_dir())
            for other, theirs, at in zip(places, parts, rungs, strict=True)
        )
        for n in range(1, 1 if alike else len(own)):
            if all(theirs == own or theirs[-n:] != own[-n:] for theirs in parts):
                return "/".join(own[-n:])
        return str(place.with_name(own[-1] + place.suffix) if rung else place)

    names = [name(*of) for of in zip(places, parts, rungs, strict=True)]
    settings = [name.split(",") for name in names]
    own = [",".join(s for s in of if not all(s in others for others in settings)) for of in settings]
    named = own if all(own) and len(set(own)) == len(set(names)) else names
    return [name + rung for name, rung in zip(named, rungs, strict=True)]


def check_pass_at(system: System) -> None:
    """Checks that each prompt of a system has as many answers as the largest k of pass@k.

    Raises:
        InputError: naming the system and both numbers.
    """
    fewest = fewest_answers(system)
    if (most := max(system.pass_at, default=0)) > fewest:
        raise InputError(
            f"pass@{most} of {system.name} {system.dataset}".rstrip()
            + f": {most} is above the {fewest} answers to a prompt; use --pass-at with {fewest} at most"
        )


def fewest_answers(system: System) -> int:
    """Returns the number of answers, over all seeds, to the prompt of a system that has the fewest."""
    return min(sum(len(row.answers) for row in rows) for rows in zip(*system.by_seed, strict=True))


def _of_run(directory: Path, trust: bool) -> tuple[dict[str, Metric], tuple[int, ...]]:
    """Returns the metrics that a run's configuration names, the main one first, and each k of its pass@k."""
    settings = read_settings(directory, _WITHOUT)
    if settings is None:
        return {}, ()
    data = settings.get("data")
    metrics = data.get("metrics") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(metrics, dict | None):
        raise damaged(directory / CONFIG_FILE, "it has no data.metrics", _WITHOUT)
    pass_at = data.get("pass_at", [])
    if not isinstance(pass_at, list) or not all(type(k) is int and k > 0 for k in pass_at):
        raise damaged(directory / CONFIG_FILE, "its data.pass_at is no list of whole numbers", _WITHOUT)
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
    main = data.get("valid_metric")
    return dict(sorted(found.items(), key=lambda metric: metric[0] != main)), tuple(pass_at)


_WITHOUT = "delete it, and the answers are scored by the usual metrics"


def metric_of(name: str, systems: Sequence[System]) -> Metric:
    """Returns the metric `name` of the first system that has it, or of `KNOWN`."""
    for metrics in [*(system.metrics for system in systems), KNOWN]:
        if name in metrics:
            return tokenized({name: metrics[name]}, systems[0].tokenize)[name]
    known = list(dict.fromkeys([*KNOWN, *(metric for system in systems for metric in system.metrics)]))
    raise InputError(f"--metric={name} is no metric of these answers{choose_one(name, known)}")


def rivals(systems: Sequence[System]) -> list[list[System]]:
    """Groups the systems that answer the same prompts of a set; the answers in a group have one order."""
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
    """Returns the main metric of the first run that names metrics; else the first of `ALWAYS`."""
    own = [system.metrics for system in systems if list(system.metrics) != list(ALWAYS)]
    return next(iter(own[0])) if own else ALWAYS[0]


def _check_same_prompts(one: str, first: Sequence[Answered], other: str, second: Sequence[Answered]) -> None:
    for number, (a, b) in enumerate(itertools.zip_longest(first, second), 1):
        if a is None or b is None or a.references != b.references:
            raise InputError(
                f"{one} and {other} do not answer the same prompts: they differ at prompt {number}; "
                "score them apart"
            )
