"""The 95% intervals of a run's scores over the choice of prompts."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy

from amid.metrics import Comparison, Metric, paired_bootstrap, paired_bootstrap_of_sets
from amid.scoring.answers import answers_files, read_answers, read_per_prompt
from amid.scoring.scores import metric_values, resampled

REMEDY = "put it back from a copy, or score the run again: amid evaluate run=RUN"


def score_intervals(
    generations: Path, names: Mapping[str, Iterable[str]], of_sets: Mapping[str, Metric]
) -> dict[str, dict[str, Comparison]]:
    """Returns the interval of each score: its comparison with 0 by `paired_bootstrap`.

    A score that is not known prompt by prompt, and not among `of_sets`, has no interval.

    Args:
        generations: the folder of a run's answers.
        names: the names of the scores of each set.
        of_sets: metrics of whole sets, such as BLEU, which are computed again for other draws of prompts.

    Raises:
        Damaged: if a file of the answers is not what the run wrote.
    """
    known = read_per_prompt(generations, REMEDY)
    found: dict[str, dict[str, Comparison]] = {}
    for dataset, of_set in names.items():
        scores = known.get(dataset, {})
        found[dataset] = {}
        for name in of_set:
            values = scores.get(name, [])
            if len(values) > 1 and all(map(math.isfinite, values)):
                found[dataset][name] = paired_bootstrap(values, [0.0] * len(values))
        again = {name: of_sets[name] for name in of_set if name in of_sets and name not in scores}
        found[dataset] |= _of_whole_sets(generations, dataset, again) if again else {}
    return found


def _of_whole_sets(generations: Path, dataset: str, metrics: Mapping[str, Metric]) -> dict[str, Comparison]:
    """Returns the intervals of scores that are no means over prompts."""
    by_seed = [read_answers(file) for file in answers_files(generations).get(dataset, {}).values()]
    if not by_seed or len(by_seed[0]) < 2:
        return {}
    given = metric_values(metrics, by_seed)
    of_draws = {name: resampled(of_seeds, by_seed) for name, of_seeds in given.items()}
    return {
        name: paired_bootstrap_of_sets(draws, lambda of: numpy.zeros(len(of)), len(by_seed[0]))
        for name, draws in of_draws.items()
        if draws is not None
    }
