"""The log of a run, `run.log`: amid's messages, and the warnings of libraries, which stay off the screen."""

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amid.errors import plain, wants_traceback

RUN_LOG = "run.log"

_TALKATIVE = ("datasets", "httpx", "huggingface_hub", "lightning", "pytorch_lightning", "transformers")
"""Libraries that log more than warnings."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class HidingFormatter(logging.Formatter):
    """Formats a record of a log with its time, without secrets and without a terminal's colours."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, followed by the traceback where there is one."""
        from amid.config.secrets import hide

        return hide(plain(_COLOUR.sub("", super().format(record))))


class _File(logging.FileHandler):
    """A log file that prints no errors: if the disk is full, the run cannot write its result, and says so."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # of opening the file
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Libraries:
    """Takes from libraries the handlers with which they print their logs, and gives them back.

    A library adds its handler when it is imported, which is late, so each record is caught before it is
    handled.
    """

    active = False

    def __init__(self) -> None:
        self._factory = logging.getLogRecordFactory()
        self._taken: list[tuple[logging.Logger, logging.Handler, bool]] = []

    def take(self) -> None:
        _Libraries.active = True
        logging.setLogRecordFactory(self._record)

    def give_back(self) -> None:
        _Libraries.active = False
        logging.setLogRecordFactory(self._factory)
        for logger, handler, propagated in reversed(self._taken):
            logger.addHandler(handler)
            logger.propagate = propagated

    def _record(self, name: str, *details: Any, **named: Any) -> logging.LogRecord:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None and logger is not logging.root:
            for handler in logger.handlers[:]:
                if type(handler) is logging.StreamHandler:
                    self._taken.append((logger, handler, logger.propagate))
                    logger.removeHandler(handler)
                    logger.propagate = True
            logger = logger.parent
        return self._factory(name, *details, **named)


@contextlib.contextmanager
def off_the_screen() -> Iterator[None]:
    """Keeps Python's warnings and the logs of libraries off the screen within its block.

    Within `logged` they go to the log of the run. With AMID_TRACEBACK=1 the screen shows warnings too.
    """
    if _Libraries.active:
        yield
        return
    screen: logging.Handler = logging.NullHandler()  # without a handler, logging itself would print
    if wants_traceback():
        screen = logging.StreamHandler(sys.stderr)
        screen.setLevel(logging.WARNING)
        screen.setFormatter(HidingFormatter())
    logging.root.addHandler(screen)
    libraries = _Libraries()
    libraries.take()
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            libraries.give_back()
            logging.root.removeHandler(screen)


@contextlib.contextmanager
def logged(directory: Path) -> Iterator[None]:
    """Writes amid's messages and libraries' warnings in its block to `directory`/run.log, with the time.

    A warning is in the log once for each place that it comes from. Secrets are hidden.

    Raises:
        Damaged: if the folder has a link in place of a file, such as of run.log.
    """
    from amid.files import check_own

    check_own(directory, (), "remove the link")
    file = _File(directory / RUN_LOG, encoding="utf-8", delay=True)
    file.setFormatter(HidingFormatter())
    file.addFilter(_is_worth_a_line)
    level = logging.root.level
    with off_the_screen(), warnings.catch_warnings():  # warns again of what an earlier run was warned of
        logging.root.addHandler(file)
        logging.root.setLevel(logging.INFO)
        try:
            yield
        finally:
            logging.root.removeHandler(file)
            logging.root.setLevel(level)
            file.close()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _TALKATIVE
