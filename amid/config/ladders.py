"""Ladders: several temperatures, or several top-p, at which one student's answers are drawn and scored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from amid.errors import InputError

LADDERS = {"temperature": "temperatures", "top_p": "top_ps"}
"""The setting of `generation` that lists the rungs of a ladder, by the setting that the ladder varies."""


class Rung(NamedTuple):
    """A value of the setting that a ladder varies."""

    ladder: str
    """A key of `LADDERS`."""
    value: float

    @property
    def folder(self) -> str:
        """The name of the folder of its answers, in the folder of a run's answers: `temperature-0.4`."""
        return f"{self.ladder}-{float(self.value)}"

    def __str__(self) -> str:
        return f"{self.value:g}" if self.ladder == "temperature" else f"{self.ladder}={self.value:g}"


def rungs_of(generation: Mapping[str, Any]) -> list[Rung]:
    """Returns the rungs that the settings `generation` name, rising within each ladder."""
    return [
        Rung(ladder, float(value))
        for ladder, key in LADDERS.items()
        for value in sorted(generation.get(key) or ())
    ]


def check_ladders(generation: Mapping[str, Any]) -> None:
    """Checks that there are several different answers to a prompt at each rung.

    Args:
        generation: the settings that there are by name, such as temperatures and samples.

    Raises:
        InputError: naming the setting.
    """
    ladders = {key: values for key in LADDERS.values() if (values := generation.get(key)) is not None}
    samples, seeds = generation.get("samples", 1), generation.get("seeds", (10, 20, 30, 40, 50))
    for key, values in ladders.items():
        shown = f"generation.{key}=[{', '.join(map(str, values))}]"
        if samples * len(seeds) < 2:
            raise InputError(
                f"{shown} with one answer to a prompt: diversity is measured among several; use "
                "generation.samples=4, or several generation.seeds"
            )
        if key == "top_ps" and generation.get("temperature", 1.0) == 0:
            raise InputError(
                f"{shown} with generation.temperature=0: greedy decoding ignores top-p; use a temperature "
                "above 0"
            )
