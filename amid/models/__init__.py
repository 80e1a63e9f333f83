"""Teacher and student: where they come from, and what they can read."""

from amid.models.lora import LoRA
from amid.models.source import ModelSource, load_tokenizer

__all__ = ["LoRA", "ModelSource", "load_tokenizer"]
