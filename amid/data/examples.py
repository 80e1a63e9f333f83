"""The example type shared by every source of instructions."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """One instruction with its optional input and its acceptable responses; training aims at the first."""

    instruction: str
    input: str
    outputs: tuple[str, ...]
    fields: Mapping[str, str | int | float] = field(default_factory=dict, compare=False)
    """What else its row tells of it, such as a category; no model sees it, scores can be had by it."""
