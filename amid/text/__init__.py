"""The text that a student is trained on: the data's responses, the teacher's, its own, or samples of both."""

from amid.text.base import Answerer, DataText, Text, on_student_text, prompts_of
from amid.text.rollouts import RolloutText
from amid.text.student import AdaptiveText, StudentText
from amid.text.teacher import TeacherText

__all__ = [
    "AdaptiveText",
    "Answerer",
    "DataText",
    "RolloutText",
    "StudentText",
    "TeacherText",
    "Text",
    "on_student_text",
    "prompts_of",
]
