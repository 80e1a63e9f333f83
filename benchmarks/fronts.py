"""Measures how often the 95% interval of a difference at equal diversity holds the true one.

    python benchmarks/fronts.py [SYSTEMS]

It simulates pairs of systems with a known difference, with one and with several training seeds, and prints
the share of the intervals that hold it. Differences at one diversity and areas are both counted.
"""

import sys

import numpy
from numpy.typing import NDArray

from amid.metrics.fronts import Curves, Front, difference_of_areas, differences_at, seed_spreads

LADDER = (0.4, 0.55, 0.7, 0.85, 1.0, 1.2)
AT = 28.0
"""A diversity in the middle of the simulated curves."""

CASES = [
    # prompts, training seeds, standard deviation of a seed's own quality
    (20, 1, 0.0),
    (60, 1, 0.0),
    (256, 1, 0.0),
    (60, 2, 0.0),
    (60, 2, 1.0),
    (60, 2, 4.0),
    (60, 3, 0.0),
    (60, 3, 1.0),
    (60, 3, 4.0),
    (60, 5, 1.0),
]


def system(
    random: numpy.random.Generator,
    hard: NDArray[numpy.float64],
    seeds: int,
    of_a_seed: float,
    sharper: float = 1.0,
    better: float = 0.0,
) -> list[Front]:
    """Returns a front for each training seed of a system on shared prompts.

    Args:
        random: the generator of its answers and seeds.
        hard: [N], how hard each prompt is, for all systems.
        seeds: training seeds.
        of_a_seed: the standard deviation of a seed's own quality, in points.
        sharper: the system at temperature t has the diversity of another at `sharper` times t.
        better: points of quality above that other system at equal diversity.
    """
    fronts = []
    for _ in range(seeds):
        t = sharper * numpy.array(LADDER)[:, None]
        own = better + of_a_seed * random.normal() + 4 * random.normal(size=len(hard))  # one a prompt
        noise = random.normal(size=(2, len(LADDER), len(hard)))
        diversity = 70 * numpy.exp(-1.1 * t) + 4 * hard + 6 * noise[0]
        quality = 20 - 24 * (t - 0.6) ** 2 + 8 * hard + own + 5 * noise[1]
        fronts.append(Front(LADDER, quality, diversity))
    return fronts


def covered(
    prompts: int, seeds: int, of_a_seed: float, systems: int, resamples: int = 1000
) -> tuple[float, float, float]:
    """Returns the shares of intervals that hold the true difference of two systems.

    It is taken at one diversity, over the shared range, and at one diversity with the spread over training
    seeds of four systems, as in reports. The first system is sharper, and a point better at equal diversity.
    """
    better = 1.0
    held = [0, 0, 0]
    for number in range(systems):
        random = numpy.random.default_rng([prompts, seeds, number])
        hard = random.normal(size=prompts)
        one = Curves(system(random, hard, seeds, of_a_seed, 0.9, better), resamples, number)
        other = Curves(system(random, hard, seeds, of_a_seed), resamples, number)
        more = [Curves(system(random, hard, seeds, of_a_seed), resamples, number) for _ in range(2)]
        spreads = seed_spreads([one, other, *more], [AT])
        found = (
            differences_at(one, other, [AT])[0],
            difference_of_areas(one, other),
            differences_at(one, other, [AT], spreads)[0],
        )
        for place, of in enumerate(found):
            held[place] += of is not None and of.low <= better <= of.high
    at, area, pooled = (count / systems for count in held)
    return at, area, pooled


def main(systems: int) -> None:
    """Prints the coverage of each case."""
    print("prompts  training seeds  spread of seeds  at one diversity (%)  area (%)  of four systems (%)")
    for prompts, seeds, of_a_seed in CASES:
        at, area, pooled = (100 * share for share in covered(prompts, seeds, of_a_seed, systems))
        line = f"{prompts:7}  {seeds:14}  {of_a_seed:15.1f}  {at:20.1f}  {area:8.1f}  {pooled:19.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
