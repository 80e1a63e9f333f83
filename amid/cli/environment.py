"""The environment variables of every process of amid."""

import os

DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "MKL_CBWR": "AUTO,STRICT",
}
"""Tokenizers start no threads of their own. Intel's products do not depend on the number of threads, so that
ranks, which share the threads out, compute what one process computes."""


def set_environment() -> None:
    """Sets the variables that are not set; before torch computes anything."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
