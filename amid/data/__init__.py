"""Instruction data: examples, prompts, batches."""

from amid.data.datamodule import InstructionData
from amid.data.examples import Example
from amid.data.prompts import ChatTemplate, Template

__all__ = ["ChatTemplate", "Example", "InstructionData", "Template"]
