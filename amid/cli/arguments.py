"""Parses the arguments of commands that take files and options in place of settings."""

import argparse
import re
from typing import NoReturn

from amid.errors import InputError, choose_one


class Arguments(argparse.ArgumentParser):
    """Refuses arguments with a one-line message, like the commands that take settings."""

    def error(self, message: str) -> NoReturn:
        """Refuses the arguments.

        Raises:
            InputError: with argparse's message and the remedy.
        """
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        options = [option for option in self._option_string_actions if option.startswith("--")]
        near = choose_one(unknown.group(1), options) if unknown else ""
        raise InputError(f"{message}{near}; see {self.prog} --help")
