"""Ladders: a run's answers at several temperatures or top-p, as files, and its curve of quality over
diversity."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from amid.config.ladders import LADDERS, rungs_of
from amid.config.run_settings import CONFIG_FILE, read_settings
from amid.errors import InputError, choose_one
from amid.files import damaged
from amid.measures import OF_ANSWERS, measure_of
from amid.metrics.fronts import Front
from amid.results import quality_metrics
from amid.scoring.answers import PER_PROMPT, PROMPTS, REMEDY, UNREAD, read_per_prompt


@dataclass(frozen=True)
class Ladder:
    """The scores of a run's answers at several temperatures, or several top-p."""

    folder: Path
    """The folder of the run."""
    name: str
    """`temperature` or `top_p`."""
    own: float
    """The temperature or top-p of the run's own scores, which need not be a rung."""
    rungs: Mapping[float, Mapping[str, Mapping[str, Any]]]
    """Rung, rising -> set -> metric -> the score of each prompt (`PER_PROMPT`)."""

    def prompts(self, dataset: str) -> str | None:
        """Returns the key of the prompts of a set, equal for runs that answer the same; None if unknown."""
        return next(iter(self.rungs.values())).get(dataset, {}).get(PROMPTS)

    def metrics(self, dataset: str) -> list[str]:
        """Returns the metrics with a score for each prompt of a set; empty for a set that was not scored.

        A metric with a score that is not finite, at any rung, is left out.
        """
        return self._metrics.get(dataset, [])

    @cached_property
    def _metrics(self) -> dict[str, list[str]]:
        first, *_ = self.rungs.values()
        return {
            dataset: [
                name
                for name, values in scores.items()
                if name not in (PROMPTS, UNREAD) and values and self._all_finite(dataset, name)
            ]
            for dataset, scores in first.items()
        }

    def _all_finite(self, dataset: str, metric: str) -> bool:
        of_rungs = [sets.get(dataset, {}).get(metric, ()) for sets in self.rungs.values()]
        return all(math.isfinite(value) for values in of_rungs for value in values)

    def size(self, dataset: str, metric: str) -> int:
        """Returns the number of prompts of a set that have a score in a metric."""
        return len(next(iter(self.rungs.values()))[dataset][metric])

    def front(self, dataset: str, quality: str | None = None, diversity: str = "self_bleu") -> Front:
        """Returns the curve on a set (`fronts`).

        Raises:
            InputError: if the run has no such set or score.
            Damaged: if the rungs do not fit together.
        """
        generations = self.folder / "generations"
        for sets in self.rungs.values():
            if dataset not in sets:
                raise InputError(
                    f"{generations} has no answers to {dataset}{choose_one(dataset, list(sets))}"
                )
        of_rungs = [sets[dataset] for sets in self.rungs.values()]
        if len({of.get(PROMPTS) for of in of_rungs}) > 1:
            raise damaged(generations, f"its rungs answer other prompts of {dataset}", REMEDY)
        metrics = self.metrics(dataset)
        if quality is None:
            quality = next(iter(quality_metrics([metrics])), "quality")
        for name in (quality, diversity):
            if name not in metrics:
                others = [m for m in metrics if (m in OF_ANSWERS) == (name == diversity)]
                one_of = choose_one(name, others)
                raise InputError(f"{self.folder} has no {name} of each prompt of {dataset}{one_of}")
        try:
            return Front(
                list(self.rungs),
                [of[quality] for of in of_rungs],
                [similarity(diversity, of[diversity]) for of in of_rungs],
            )
        except (KeyError, ValueError) as error:  # a rung without the score, or with other numbers of prompts
            raise damaged(generations, f"{dataset} at several {self.name}: {error}", REMEDY) from error


def read_ladder(folder: Path, ladder: str = "temperature") -> Ladder:
    """Reads the scores of a run's answers at each rung of a ladder.

    Args:
        folder: the folder of the run.
        ladder: `temperature` or `top_p`.

    Raises:
        InputError: if the run has no such ladder, or a file is missing.
        Damaged: if a file is not what the run wrote.
    """
    own, places = _places(folder, ladder)
    rungs = {}
    for rung, place in places.items():
        rungs[rung] = read_per_prompt(place, REMEDY)
        if not rungs[rung]:
            raise InputError(f"{place / PER_PROMPT} does not exist; {REMEDY}")
    return Ladder(folder, ladder, own, rungs)


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
    return read_ladder(folder, ladder).front(dataset, quality, diversity)


def similarity(diversity: str, values: Sequence[float]) -> list[float]:
    """Returns values of a measure of diversity so that high means similar answers: 100 - distinct-n."""
    turned = measure_of(diversity).better == "higher"
    return [100 - value if turned else value for value in values]


def _places(folder: Path, ladder: str) -> tuple[float, dict[float, Path]]:
    """Returns the run's own setting, and the folder of the answers at each rung of a run's ladder."""
    settings = read_settings(folder) or {}
    generation = settings.get("generation")
    if not isinstance(generation, Mapping):
        raise InputError(f"{folder / CONFIG_FILE} names no generation; give the folder of a finished run")
    try:
        rungs = [rung for rung in rungs_of(generation) if rung.ladder == ladder]
        own = float(generation.get(ladder, 1.0))
    except (TypeError, ValueError) as error:
        raise damaged(folder / CONFIG_FILE, error, REMEDY) from error
    if not rungs:
        key = LADDERS.get(ladder, "temperatures")
        raise InputError(
            f"{folder} has no answers at several values of {ladder}; draw them: "
            f"amid evaluate run={folder} generation.{key}=[0.5,0.75,1.0]"
        )
    answers = folder / "generations"
    return own, {rung.value: answers if rung.value == own else answers / rung.folder for rung in rungs}
