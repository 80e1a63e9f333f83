"""The entry point of `amid score`: what files of answers are worth, and whether they differ."""

import argparse
import csv
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from amid.errors import InputError
from amid.metrics import Metric, exact_match, paired_bootstrap, rouge_l, rouge_n
from amid.results import METRICS, Score
from amid.scoring import Answered, per_prompt, read_answers, score_answers

SCORED: dict[str, Metric] = {
    "rouge_l": rouge_l,
    "rouge_1": partial(rouge_n, n=1),
    "rouge_2": partial(rouge_n, n=2),
    "exact_match": exact_match,
}
COMPARED = "rouge_l"
OTHERS = {
    "distinct_2": "Distinct-2",
    "repetition": "Rep-4",
    "overlong": "Overlong",
    "eos_share": "EOS",
    "length": "Length",
    "log_prob": "Log p",
}
PARTS_OF_LENGTH = 3
WIDEST = 10_000
COLUMN = 16
LEGEND = (
    "0 to 100, but Length (tokens) and Log p (nats a token, by the model). ROUGE and exact match: higher is "
    "better. Self-BLEU, among the answers to one prompt, or to all (set): lower is more diverse. Distinct-2: "
    "pairs of words that are different ones. Rep-4: runs of four words that the answer had before. Overlong: "
    "answers of over twice the words of the longest reference. EOS: answers that ended. ±: over the seeds.\n"
)


@dataclass(frozen=True)
class System:
    """The answers of one model to one set: prompt by prompt for each seed."""

    name: str
    dataset: str
    by_seed: list[list[Answered]]

    def only(self, prompts: Sequence[int]) -> list[list[Answered]]:
        """The answers to these prompts."""
        return [[answered[i] for i in prompts] for answered in self.by_seed]


def run(arguments: Sequence[str]) -> None:
    """Prints the scores of each file or run, by parts with --by, and every two systems' difference.

    Raises:
        InputError: for a file that cannot be read or scored.
    """
    parser = argparse.ArgumentParser(
        prog="amid score", description="Scores files of answers, or runs, and says whether they differ."
    )
    parser.add_argument(
        "paths", nargs="+", metavar="FILE|RUN", help="a file of answers, or a folder of a run"
    )
    parser.add_argument(
        "--by", metavar="FIELD", help="also by a field of the lines, or by `length` of the references"
    )
    parser.add_argument("--csv", metavar="FILE", help="also write all scores there, unrounded")
    given = parser.parse_args(arguments)
    systems = [system for path in given.paths for system in _systems(Path(path))]
    lines: list[tuple[System, str, dict[str, Score]]] = []
    for system in systems:
        parts = {"all": list(range(len(system.by_seed[0])))} | (_parts(system, given.by) if given.by else {})
        lines += [
            (system, name, score_answers(system.only(prompts), SCORED)) for name, prompts in parts.items()
        ]
    console = Console(highlight=False, width=None if Console().is_terminal else 200)
    for table in _tables(lines, console):
        console.print(table)
    console.print(LEGEND, markup=False)
    for dataset in dict.fromkeys(system.dataset for system in systems):
        rivals = [system for system in systems if system.dataset == dataset]
        if len(rivals) > 1 and len(rivals[0].by_seed[0]) == 1:
            console.print("One prompt tells nothing of a difference; two or more are needed.\n", markup=False)
        elif len(rivals) > 1:
            console.print(_differences(dataset, rivals))
            console.print(
                "Difference of the means over prompts, with its 95% interval by paired bootstrap over them; "
                "*: the interval leaves out 0.\n",
                markup=False,
            )
    if given.csv:
        _write_csv(Path(given.csv), lines)


def _systems(path: Path) -> list[System]:
    """The sets of a run's folder, or a file as a set of its own."""
    if not path.is_dir():
        return [System(path.stem if path.suffix else path.name, "", [read_answers(path)])]
    folder = path / "generations" if (path / "generations").is_dir() else path
    sets: dict[str, list[tuple[int, Path]]] = {}
    for file in folder.glob("*-*.jsonl"):
        name, _, seed = file.stem.rpartition("-")
        if seed.isdigit():
            sets.setdefault(name, []).append((int(seed), file))
    if not sets:
        raise InputError(f"{path} holds no generations/SET-SEED.jsonl; give the folder of a finished run")
    name = path.parent.name if path.name == "generations" else path.name
    systems = []
    for dataset, files in sorted(sets.items()):
        by_seed = [read_answers(file) for _, file in sorted(files)]
        for _, answered in zip(files, by_seed, strict=True):
            _check_same_prompts(f"{name} {dataset}", by_seed[0], f"{name} {dataset}", answered)
        systems.append(System(name, dataset, by_seed))
    return systems


def _parts(system: System, by: str) -> dict[str, list[int]]:
    """Prompts by the value of a field, or by the words of their longest reference in thirds."""
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
    for index, answered in enumerate(first):
        if by not in answered.fields:
            known = ", ".join(["length", *answered.fields])
            raise InputError(
                f"--by={by}: prompt {index + 1} of {system.name} has no such field; choose of {known}"
            )
        parts.setdefault(f"{by}={answered.fields[by]}", []).append(index)
    return dict(sorted(parts.items()))


def _tables(lines: Sequence[tuple[System, str, Mapping[str, Score]]], console: Console) -> Iterator[Table]:
    """A row for each of `lines`; where the terminal is too narrow, a column, in as many tables as needed."""
    metrics = [*SCORED, "self_bleu", "corpus_self_bleu", *OTHERS]
    titles = METRICS | OTHERS | {"self_bleu": "Self-BLEU", "corpus_self_bleu": "Self-BLEU, set"}
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
            columns[titles[metric]] = [_cell(scores.get(metric)) for *_, scores in lines]
    wide = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        wide.add_column(name, justify="left" if name in labels else "right")
    for row in zip(*columns.values(), strict=True):
        wide.add_row(*map(escape, row))
    if console.measure(wide, options=console.options.update(width=WIDEST)).maximum <= console.width:
        yield wide
        return
    at_once = max((console.width - max(map(len, columns))) // COLUMN, 1)
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


def _cell(score: Score | None) -> str:
    if score is None or math.isnan(score.mean):
        return "–"
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ±{score.std:.2f}")


def _differences(dataset: str, systems: Sequence[System]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=dataset or None, title_justify="left")
    for name in ("First", "Second", f"{METRICS[COMPARED]} difference", "95% interval", "p", ""):
        is_text = name in ("First", "Second", "")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    scores = [per_prompt(SCORED[COMPARED], system.by_seed) or [] for system in systems]
    for (one, first), (other, second) in itertools.combinations(zip(systems, scores, strict=True), 2):
        _check_same_prompts(one.name, one.by_seed[0], other.name, other.by_seed[0])
        found = paired_bootstrap(first, second)
        table.add_row(
            escape(one.name),
            escape(other.name),
            f"{found.difference:+.2f}",
            f"{found.low:+.2f} to {found.high:+.2f}",
            f"{found.p_value:.4f}" if found.p_value else "<0.0002",  # none of 10,000 resamples; one is 0.0002
            "*" if found.significant else "",
        )
    return table


def _check_same_prompts(one: str, first: Sequence[Answered], other: str, second: Sequence[Answered]) -> None:
    for number, (a, b) in enumerate(itertools.zip_longest(first, second), 1):
        if a is None or b is None or a.references != b.references:
            raise InputError(
                f"{one} and {other} do not answer the same prompts: they differ at prompt {number}; "
                "score them apart"
            )


def _write_csv(file: Path, lines: Sequence[tuple[System, str, Mapping[str, Score]]]) -> None:
    part = file.with_name(f"{file.name}.part")
    metrics = list(dict.fromkeys(metric for *_, scores in lines for metric in scores))
    with part.open("w", encoding="utf-8", newline="") as out:
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
    os.replace(part, file)
