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
    """Further fields of its row, such as a category. No model sees them; scores can be split by them."""
