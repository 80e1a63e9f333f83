"""The example type shared by every source of instructions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One instruction with its optional input and its acceptable responses; training aims at the first."""

    instruction: str
    input: str
    outputs: tuple[str, ...]
