"""Instruction data: examples, prompts, batches."""

from amid.data.datamodule import InstructionData
from amid.data.examples import Conversation, Example
from amid.data.templates import Template

__all__ = ["Conversation", "Example", "InstructionData", "Template"]
