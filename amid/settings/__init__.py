"""One check of every setting of a run, before anything is prepared."""

from amid.settings.check import check, check_arguments, check_values, has_argument
from amid.settings.sweep_file import SweepFile, sweep_of
from amid.settings.together import check_data
from amid.settings.words import other_word, shown

__all__ = [
    "SweepFile",
    "check",
    "check_arguments",
    "check_data",
    "check_values",
    "has_argument",
    "other_word",
    "shown",
    "sweep_of",
]
