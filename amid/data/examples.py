"""The example type shared by every source of instructions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One instruction with its optional input and its acceptable responses; the first is the training target."""

    instruction: str
    input: str
    outputs: tuple[str, ...]
