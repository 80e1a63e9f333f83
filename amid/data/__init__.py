"""Instruction data: examples, prompts, batches."""

from amid.data.datamodule import InstructionData
from amid.data.examples import Example
from amid.data.templates import Template

__all__ = ["Example", "InstructionData", "Template"]
