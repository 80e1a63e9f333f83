"""Answers of a model to prompts."""

from amid.generation.sampling import Sampling
from amid.generation.vllm import VLLMSampling

__all__ = ["Sampling", "VLLMSampling"]
