"""Ladders: a run's answers at several temperatures or top-p, as files, and its curve of quality over
diversity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amid.config.run_settings import CONFIG_FILE, read_settings
from amid.errors import InputError, choose_one
from amid.files import damaged
from amid.measures import OF_ANSWERS, measure_of
from amid.metrics.fronts import Front
from amid.results import quality_metrics
from amid.scoring.answers import PER_PROMPT, PROMPTS, REMEDY, UNREAD, read_per_prompt

LADDERS = {"temperature": "temperatures", "top_p": "top_ps"}
"""The setting of `generation` that lists the rungs of a ladder, by the ladder: the setting that it varies."""


def rung_folder(folder: Path, ladder: str, rung: float) -> Path:
    """Returns the folder of the answers at a rung, in the folder of a run's answers: `temperature-0.4`."""
    return folder / f"{ladder}-{float(rung)}"


def rungs_of(generation: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns the rungs of each ladder that the settings `generation` of a run name, rising."""
    found = {ladder: generation.get(key) for ladder, key in LADDERS.items()}
    return {ladder: sorted(map(float, rungs)) for ladder, rungs in found.items() if rungs}


def fronts(
    folder: Path,
    dataset: str,
    ladder: str = "temperature",
    quality: str | None = None,
    diversity: str = "self_bleu",
) -> Front:
    """Reads the curve of a run on a set: the quality and the diversity of each prompt at each rung.

    Args:
        folder: the folder of the run.
        dataset: the name of the set.
        ladder: `temperature` or `top_p`.
        quality: a metric that scores single answers; by default the main one of the run.
        diversity: self_bleu, distinct_1 or distinct_2.

    Returns:
        The rungs as `temperatures`, rising; `quality` and `diversity` [rungs, prompts]. The diversity is high
        where answers resemble each other: Self-BLEU, or 100 - distinct-n.

    Raises:
        InputError: if the run has no such ladder, set or score, or a file is missing.
        Damaged: if a file is not what the run wrote.
    """
    places = _places(folder, ladder)
    sets = [_of_set(place, dataset) for place in places.values()]
    first = sets[0]
    if any(of[PROMPTS] != first[PROMPTS] for of in sets):
        raise damaged(folder / "generations", f"its rungs answer other prompts of {dataset}", REMEDY)
    metrics = [name for name in first if name not in (PROMPTS, UNREAD)]
    if quality is None:
        quality = next(iter(quality_metrics([metrics])), "quality")
    for name in (quality, diversity):
        if name not in metrics:
            others = [m for m in metrics if (m in OF_ANSWERS) == (name == diversity)]
            raise InputError(f"{folder} has no {name} of each prompt of {dataset}{choose_one(name, others)}")
    turned = measure_of(diversity).better == "higher"
    try:
        return Front(
            list(places),
            [of[quality] for of in sets],
            [[100 - value if turned else value for value in of[diversity]] for of in sets],
        )
    except (KeyError, ValueError) as error:  # a rung without the score, or with another number of prompts
        raise damaged(folder / "generations", f"{dataset} at several {ladder}: {error}", REMEDY) from error


def _places(folder: Path, ladder: str) -> dict[float, Path]:
    """Returns the folder of the answers at each rung of a run's ladder."""
    settings = read_settings(folder) or {}
    generation = settings.get("generation")
    if not isinstance(generation, Mapping):
        raise InputError(f"{folder / CONFIG_FILE} names no generation; give the folder of a finished run")
    try:
        rungs = rungs_of(generation)
        own = float(generation.get(ladder, 1.0))
    except (TypeError, ValueError) as error:
        raise damaged(folder / CONFIG_FILE, error, REMEDY) from error
    if ladder not in rungs:
        key = LADDERS.get(ladder, "temperatures")
        raise InputError(
            f"{folder} has no answers at several values of {ladder}; draw them: "
            f"amid evaluate run={folder} generation.{key}=[0.5,0.75,1.0]"
        )
    answers = folder / "generations"
    return {rung: answers if rung == own else rung_folder(answers, ladder, rung) for rung in rungs[ladder]}


def _of_set(folder: Path, dataset: str) -> dict[str, Any]:
    """Returns the scores of the prompts of a set from a folder of answers, and the key of its prompts."""
    sets = read_per_prompt(folder, REMEDY)
    if not sets:
        raise InputError(f"{folder / PER_PROMPT} does not exist; {REMEDY}")
    if dataset not in sets:
        raise InputError(f"{folder} has no answers to {dataset}{choose_one(dataset, list(sets))}")
    return {PROMPTS: None} | sets[dataset]
