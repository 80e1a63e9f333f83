"""The teacher's signal: asked live, or read from its hidden states on disk."""

from amid.teacher.supply import TeacherSupply

__all__ = ["TeacherSupply"]
