"""The entry point of `amid score`: what files of answers are worth, and whether they differ."""

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from hydra.utils import instantiate
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from amid.config import CONF
from amid.console import console
from amid.errors import InputError, choose_one
from amid.files import written_whole
from amid.metrics import (
    Comparison,
    Metric,
    Resampled,
    paired_bootstrap,
    paired_bootstrap_of_sets,
)
from amid.results import KINDS, METRICS, OF_ANSWERS, Score, run_below
from amid.scoring import Answered, answers_files, applied, per_prompt, read_answers, resampled, score_answers


def _known() -> dict[str, Metric]:
    """What the files of conf/data/metrics name, each as the first that has it, in the order of reports."""
    found: dict[str, Any] = {}
    for file in sorted((CONF / "data" / "metrics").glob("*.yaml")):
        found = yaml.safe_load(file.read_text(encoding="utf-8")) | found
    order = list(METRICS)
    names = sorted(found, key=lambda name: order.index(name) if name in order else len(order))
    return {name: instantiate(found[name]) for name in names}


KNOWN = _known()
"""The metrics that the data sets of this project are scored by."""
ALWAYS = ("rouge_l", "rouge_1", "rouge_2", "exact_match")
"""Those of `KNOWN` that any answers are scored by."""
PARTS_OF_LENGTH = 3
WIDEST = 10_000
COLUMN = 16
LEGEND = (
    f"0 to 100, but {METRICS['length']} and {METRICS['log_prob']}. Of ROUGE, exact match and answer, BLEU "
    "and chrF, higher is better; of Self-BLEU, lower is more diverse. "
    + " ".join(f"{KINDS[name].title}: {KINDS[name].meaning}." for name in OF_ANSWERS)
    + " ±: over the seeds.\n"
)
ABOUT = """\
Scores files of answers, or runs, and says whether they differ.

FILE  answers of any system: JSON Lines, an object a line, with `references` (one or a list; also called
      `reference` or `output`) and `answers` (a list; one may be called `answer` or `prediction`):
      {"references": ["Paris"], "answers": ["Paris", "It is Paris."], "category": "open_qa"}
RUN   the folder of a finished run: each set in its generations/, over the seeds of the sampling
"""
MORE = f"""\
scores  Always: {", ".join(ALWAYS)}; self_bleu (among the answers to one prompt),
        corpus_self_bleu (among all), distinct_1, distinct_2, repetition, overlong. Where the lines tell:
        eos_share, length, log_prob. Of a run also the metrics that its config.yaml names in data.metrics,
        such as exact_answer of data=gsm8k, bleu and chrf of data=opus100.
tests   Every two systems with answers to the same set: the difference of their scores, its 95% interval and
        p by paired bootstrap over the prompts. BLEU and chrF are computed anew for each draw.

amid score outputs/train/default --by family --csv scores.csv
amid score ours.jsonl theirs.jsonl --metric bleu
"""


@dataclass(frozen=True)
class System:
    """The answers of one model to one set: prompt by prompt for each seed."""

    name: str
    dataset: str
    by_seed: list[list[Answered]]
    metrics: Mapping[str, Metric]
    """Those that a run names, the main one first, and those of all."""

    def only(self, prompts: Sequence[int]) -> list[list[Answered]]:
        """The answers to these prompts."""
        return [[answered[i] for i in prompts] for answered in self.by_seed]


def parser() -> argparse.ArgumentParser:
    """Of the arguments of `amid score`."""
    found = argparse.ArgumentParser(
        prog="amid score",
        description=ABOUT,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("paths", nargs="+", metavar="FILE|RUN")
    found.add_argument(
        "--by",
        metavar="FIELD",
        help="also the scores of parts: by a field of the lines, such as the category of a row of the data, "
        "or by `length`, thirds by the words of the longest reference",
    )
    found.add_argument(
        "--metric",
        metavar="NAME",
        help=f"the score to test the differences of, computed too: {', '.join(KNOWN)}, or one that a run "
        "names; by default the run's main one (data.valid_metric), of files rouge_l",
    )
    found.add_argument("--csv", metavar="FILE", help="also write all scores there, unrounded")
    return found


Lines = Sequence[tuple[System, str, Mapping[str, Score]]]
"""Of a system, the scores of a part of the prompts, by the name of the part."""


def run(arguments: Sequence[str]) -> None:
    """Prints the scores of each file or run, by parts with --by, and every two systems' difference.

    Raises:
        InputError: for a file that cannot be read or scored, or an option that does not fit.
    """
    given = parser().parse_args(arguments)
    if given.csv and not Path(given.csv).parent.is_dir():
        raise InputError(f"--csv={given.csv}: there is no folder {Path(given.csv).parent}; make it first")
    systems = _systems([Path(path) for path in given.paths])
    if given.by and given.by != "length":
        _check_field(systems, given.by)
    named = {given.metric: _metric(given.metric, systems)} if given.metric else {}
    lines: list[tuple[System, str, dict[str, Score]]] = []
    for system in systems:
        parts = {"all": list(range(len(system.by_seed[0])))} | (_parts(system, given.by) if given.by else {})
        for name, prompts in parts.items():
            try:
                scores = score_answers(system.only(prompts), named | dict(system.metrics))
            except ValueError as error:
                where = f"{system.name} {system.dataset}".strip()
                raise InputError(f"{where} cannot be scored: {error}") from error
            lines.append((system, name, scores))
    if given.csv:
        _write_csv(Path(given.csv), lines)
    out = console()
    for table in _tables(lines, out):
        out.print(table)
    out.print(LEGEND + _signatures(lines), markup=False)
    sets = [system.dataset for system in systems]
    for rivals in _rivals(systems):
        first = rivals[0]
        if len(rivals) > 1:
            _print_differences(rivals, given.metric or _main_metric(rivals), out)
        elif len(systems) > 1 and (not first.dataset or sets.count(first.dataset) > 1):
            what = f"{first.name} {first.dataset}".strip()
            out.print(f"{what} is not compared: no other one answers its prompts.", markup=False)


def _rivals(systems: Sequence[System]) -> list[list[System]]:
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


def _main_metric(systems: Sequence[System]) -> str:
    """That of the first run which names metrics; else the first of `ALWAYS`."""
    own = [system.metrics for system in systems if list(system.metrics) != list(ALWAYS)]
    return next(iter(own[0])) if own else ALWAYS[0]


def _systems(paths: Sequence[Path]) -> list[System]:
    """The sets of each run's folder, and each file as a set of its own."""
    places = [path.resolve() for path in paths]
    places = [place.parent if place.name == "generations" and place.is_dir() else place for place in places]
    systems = []
    for place, path, name in zip(places, paths, _names(places), strict=True):
        if not path.is_dir():
            metrics = {metric: KNOWN[metric] for metric in ALWAYS}
            systems.append(System(name, "", [read_answers(path)], metrics))
            continue
        folder = place / "generations" if (place / "generations").is_dir() else place
        sets = answers_files(folder)
        if not sets:
            raise InputError(
                f"{path} holds no generations/SET-SEED.jsonl; give the folder of a finished run"
                f"{run_below(place)}"
            )
        metrics = _of_run(place / "config.yaml")
        metrics |= {metric: KNOWN[metric] for metric in ALWAYS if metric not in metrics}
        for dataset, files in sets.items():
            by_seed = [read_answers(file) for file in files.values()]
            for answered in by_seed:
                _check_same_prompts(f"{name} {dataset}", by_seed[0], f"{name} {dataset}", answered)
            systems.append(System(name, dataset, by_seed, metrics))
    return _of_the_same_prompts(systems)


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
    instructed = all(row.instruction for row in (*rows, *wanted))

    def key(row: Answered) -> tuple[object, ...]:
        return (row.instruction, row.input, row.references) if instructed else row.references

    places: dict[tuple[object, ...], list[int]] = {}
    for place, row in reversed(list(enumerate(rows))):
        places.setdefault(key(row), []).append(place)
    if len(rows) != len(wanted):
        return None
    found = [places[key(row)].pop() for row in wanted if places.get(key(row))]
    return found if len(found) == len(wanted) else None


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


def _of_run(config: Path) -> dict[str, Metric]:
    """The metrics that a run's configuration names, the main one first; none where there is no such file."""
    if not config.exists():
        return {}
    try:
        data = yaml.safe_load(config.read_text(encoding="utf-8"))["config"]["data"]
        metrics = {str(name): instantiate(node) for name, node in (data.get("metrics") or {}).items()}
        main = data.get("valid_metric")
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{config} names data.metrics that cannot be had ({reason}); install or repair what they are from"
        ) from error
    except (yaml.YAMLError, OSError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{config} is no configuration of a run ({reason}); delete it") from error
    return dict(sorted(metrics.items(), key=lambda metric: metric[0] != main))


def _metric(name: str, systems: Sequence[System]) -> Metric:
    """What `name` is, to the first of the systems that has it."""
    for metrics in [*(system.metrics for system in systems), KNOWN]:
        if name in metrics:
            return metrics[name]
    known = list(dict.fromkeys([*KNOWN, *(metric for system in systems for metric in system.metrics)]))
    raise InputError(f"--metric={name} is no metric of these answers{choose_one(name, known)}")


def _check_field(systems: Sequence[System], by: str) -> None:
    """Refuses a field that no line has."""
    fields = dict.fromkeys(
        field for system in systems for answered in system.by_seed[0] for field in answered.fields
    )
    if by not in fields:
        raise InputError(f"--by={by}: no line has such a field; choose of {', '.join(['length', *fields])}")


def _parts(system: System, by: str) -> dict[str, list[int]]:
    """Prompts by the value of a field, or by the words of their longest reference in thirds.

    None where no line of the system has the field.
    """
    first = system.by_seed[0]
    parts: dict[str, list[int]] = {}
    if by == "length":
        words = [max(len(text.split()) for text in answered.references) for answered in first]
        order = sorted(range(len(words)), key=lambda i: (words[i], i))
        cuts = [len(order) * k // PARTS_OF_LENGTH for k in range(1, PARTS_OF_LENGTH)]
        for i, cut in enumerate(cuts):  # to where the next length begins
            while 0 < cut < len(order) and words[order[cut - 1]] == words[order[cut]]:
                cut += 1
            cuts[i] = cut
        for low, high in itertools.pairwise([0, *cuts, len(order)]):
            if prompts := order[low:high]:
                shortest, longest = words[prompts[0]], words[prompts[-1]]
                parts[f"{shortest}{'' if shortest == longest else f'-{longest}'} words"] = sorted(prompts)
        return parts
    if any(by in answered.fields for answered in first):
        for index, answered in enumerate(first):
            parts.setdefault(f"{by}={answered.fields.get(by, '–')}", []).append(index)
    return dict(sorted(parts.items()))


def _tables(lines: Lines, out: Console) -> Iterator[Table]:
    """A row for each of `lines`; where the terminal is too narrow, a column, in as many tables as needed."""
    metrics = [*_quality(lines), *OF_ANSWERS]
    columns = {
        "System": [system.name for system, *_ in lines],
        "Set": [system.dataset for system, *_ in lines],
        "Prompts": [part for _, part, _ in lines],
    }
    for name in ("Set", "Prompts"):
        if all(cell in ("", "all") for cell in columns[name]):
            del columns[name]
    labels = list(columns)
    for metric in metrics:
        if any(metric in scores for *_, scores in lines):
            columns[METRICS.get(metric, metric)] = [_cell(scores.get(metric)) for *_, scores in lines]
    wide = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        wide.add_column(name, justify="left" if name in labels else "right")
    for row in zip(*columns.values(), strict=True):
        wide.add_row(*map(escape, row))
    if out.measure(wide, options=out.options.update(width=WIDEST)).maximum <= out.width:
        yield wide
        return
    at_once = max((out.width - max(map(len, columns))) // COLUMN, 1)
    for start in range(0, len(lines), at_once):
        some = slice(start, start + at_once)
        narrow = Table(box=SIMPLE_HEAD, pad_edge=False)
        narrow.add_column("System")
        for name in columns["System"][some]:
            narrow.add_column(escape(name), justify="right", overflow="fold", max_width=COLUMN - 2)
        for name, cells in columns.items():
            if name != "System":
                narrow.add_row(name, *map(escape, cells[some]))
        yield narrow


def _quality(lines: Lines) -> list[str]:
    """The metrics against the references that some line has."""
    return list(dict.fromkeys(name for *_, scores in lines for name in scores if name not in OF_ANSWERS))


def _signatures(lines: Lines) -> str:
    """How the metrics of whole sets were computed, a line each."""
    told = dict.fromkeys(
        f"{METRICS.get(name, name)}: {scores[name].signature}\n"
        for name in _quality(lines)
        for *_, scores in lines
        if name in scores and scores[name].signature
    )
    return "".join(told)


def _cell(score: Score | None) -> str:
    if score is None or math.isnan(score.mean):
        return "–"
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ±{score.std:.2f}")


def _print_differences(systems: Sequence[System], name: str, out: Console) -> None:
    """Every two systems' difference in the metric `name`, or why there is none to test."""
    if len(systems[0].by_seed[0]) == 1:
        out.print("One prompt tells nothing of a difference; two or more are needed.\n", markup=False)
        return
    metric, title = _metric(name, systems), METRICS.get(name, name)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=systems[0].dataset or None, title_justify="left")
    for column in ("First", "Second", f"{title} difference", "95% interval", "p", ""):
        is_text = column in ("First", "Second", "")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    try:
        given = [applied({name: metric}, system.by_seed)[name] for system in systems]
    except ValueError as error:
        raise InputError(f"--metric={name} cannot score these answers: {error}") from error
    scores = [
        per_prompt(of, system.by_seed) or resampled(of, system.by_seed)
        for of, system in zip(given, systems, strict=True)
    ]
    for (one, first), (other, second) in itertools.combinations(zip(systems, scores, strict=True), 2):
        if first is None or second is None:
            out.print(
                f"{title} is of a whole set, and does not tell what prompts drawn anew would make of it: no "
                "difference in it is tested.\n",
                markup=False,
            )
            return
        found = _compared(first, second, len(one.by_seed[0]))
        table.add_row(
            escape(one.name),
            escape(other.name),
            f"{found.difference:+.2f}",
            f"{found.low:+.2f} to {found.high:+.2f}",
            f"{found.p_value:.4f}" if found.p_value else "<0.0002",  # none of 10,000 resamples; one is 0.0002
            "*" if found.significant else "",
        )
    out.print(table)
    of = "scores of the set" if callable(scores[0]) else "means over prompts"
    out.print(
        f"Difference of the {of}, with its 95% interval by paired bootstrap over the prompts; "
        "*: the interval leaves out 0.\n",
        markup=False,
    )


def _compared(
    first: Sequence[float] | Resampled, second: Sequence[float] | Resampled, prompts: int
) -> Comparison:
    if callable(first) and callable(second):
        return paired_bootstrap_of_sets(first, second, prompts)
    assert not callable(first)
    assert not callable(second)
    return paired_bootstrap(first, second)


def _check_same_prompts(one: str, first: Sequence[Answered], other: str, second: Sequence[Answered]) -> None:
    for number, (a, b) in enumerate(itertools.zip_longest(first, second), 1):
        if a is None or b is None or a.references != b.references:
            raise InputError(
                f"{one} and {other} do not answer the same prompts: they differ at prompt {number}; "
                "score them apart"
            )


def _write_csv(file: Path, lines: Lines) -> None:
    metrics = list(dict.fromkeys(metric for *_, scores in lines for metric in scores))
    with written_whole(file) as part, part.open("w", encoding="utf-8", newline="") as out:
        writer: Any = csv.writer(out, lineterminator="\n")
        writer.writerow(["system", "set", "prompts", *(f"{m}_{s}" for m in metrics for s in ("mean", "std"))])
        for system, prompts, scores in lines:
            cells = [
                value
                for metric in metrics
                for score in [scores.get(metric)]
                for value in ((score.mean, score.std) if score else (None, None))
            ]
            writer.writerow([system.name, system.dataset, prompts, *cells])
