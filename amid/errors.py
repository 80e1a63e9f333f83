"""Errors: `InputError` for a mistake in the user's input, and the way amid prints any error."""

import contextlib
import difflib
import errno
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence


class InputError(ValueError):
    """A mistake in the user's input: the message names the argument, its value and the remedy."""


class Busy(InputError):
    """Another process is running the requested run."""


class Damaged(InputError):
    """A file is not what amid wrote into it: the message names the file, what is wrong, and the remedy."""


def choose_one(name: str, options: Sequence[str]) -> str:
    """Returns the end of a message about a `name` that is none of `options`: the nearest option, and all."""
    choice = f"hoose one of {', '.join(options)}"
    near = nearest(name, options)
    return f"{near}? C{choice}" if near else f"; c{choice}"


def nearest(name: str, options: Sequence[str]) -> str:
    """Returns a question with the nearest of `options`, for a message about a `name` that is none of them.

    It is empty if no option is near.
    """
    near = difflib.get_close_matches(name.lower(), options, 1)
    return f"; did you mean {near[0]!r}" if near else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of the error's message, or the kind of the error if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: str, longest: int = 400) -> str:
    """Returns `text` in one line; if it has too many characters, its middle is left out."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    begin = longest * 2 // 3
    return f"{line[:begin].rstrip()} … {line[begin - longest + 3 :].lstrip()}"


_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that command a terminal or turn the direction of text, and halves of characters."""


def plain(text: str) -> str:
    """Returns text without the control characters that a terminal would obey; line breaks stay."""
    return _CONTROLS.sub("\ufffd", text)


LONGEST_WORD = 1000
"""The most characters of a word in a message, such as a path; a longer word loses its middle."""

LONGEST_MESSAGE = 20_000


def chain_of(error: BaseException) -> list[BaseException]:
    """Yields an error and the errors that led to it."""
    chain: list[BaseException] = [error]
    for link in chain:
        before = (link.__cause__, link.__context__)
        chain += [other for other in before if other is not None and other not in chain]
    return chain


def was_interrupted(error: BaseException) -> bool:
    """Returns whether an interrupt led to `error`: a library may turn it into an error of its own."""
    return any(isinstance(link, KeyboardInterrupt) for link in chain_of(error))


def is_mistake(error: BaseException) -> bool:
    """Returns whether `error` names a mistake of the user, so that a traceback adds nothing."""
    from hydra.errors import InstantiationException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        if _is_called_too_early(error):
            return True
        return isinstance(error.__cause__, ValueError) or is_mistake(error.__cause__)
    return isinstance(error, InputError | OSError | MissingMandatoryValue)


def in_one_line(error: BaseException) -> str:
    """Returns in one line what went wrong: the message of a mistake, the kind and message of other errors.

    The line has no control characters and only the ends of very long words, because a message may quote text
    that somebody else wrote.
    """
    words = (shortened(word, LONGEST_WORD) for word in plain(_told(error)).split(" "))
    return shortened(" ".join(words), LONGEST_MESSAGE)


TRACEBACK = "AMID_TRACEBACK"
"""The environment variable that asks for whole tracebacks; launchers hand it to the processes they start."""


def wants_traceback() -> bool:
    """Returns whether amid prints an error with its traceback."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")


@contextlib.contextmanager
def with_traceback(asked: bool) -> Iterator[None]:
    """Within the block, prints errors with their traceback if `asked` or if the environment asks for it."""
    before = os.environ.get(TRACEBACK)
    if asked:
        os.environ[TRACEBACK] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(TRACEBACK, None)
        else:
            os.environ[TRACEBACK] = before


def print_error(error: BaseException) -> None:
    """Prints on stderr in one line what went wrong, and the traceback if asked for, without secrets."""
    from amid.config.secrets import hide

    line = f"amid: {in_one_line(error)}"
    if not is_mistake(error) and not wants_traceback():
        line += " (--traceback prints where)"
    print(hide(line), file=sys.stderr)
    if wants_traceback():
        print(hide(plain("".join(traceback.format_exception(error)))), end="", file=sys.stderr, flush=True)


def _told(error: BaseException) -> str:
    from hydra.errors import InstantiationException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        where = re.search(r"full_key: (\S+)", str(error))
        hint = "; a plain function needs _partial_: true" if _is_called_too_early(error) else ""
        return (f"{where.group(1)}: " if where else "") + in_one_line(error.__cause__) + hint
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", "") or first_line(error)
        return f"{key} has no value; give it one, {key}=VALUE (amid help {key} says what it is)"
    out_of_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if out_of_space or "No space left on device" in str(error):
        place = _full_temporary_folder(getattr(error, "filename", None))
        if place is not None:
            return (
                f"no disk space left in TMPDIR={place}; set TMPDIR to a folder with space, or free some there"
            )
        return "no disk space left where results are written; free some and run the command again"
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        folder = os.environ.get("TMPDIR", "not set")
        return f"no folder for temporary files can be written to; set TMPDIR ({folder}) to one with space"
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist; check the paths that were given"
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or (
        isinstance(error, OSError) and error.errno == errno.EROFS
    ):
        return (
            f"cannot write {error.filename} ({error.strerror}); "
            "choose another output_dir=, prepared_dir= or data.cache_dir="
        )
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, RuntimeError) and "out of memory" in text:  # torch.OutOfMemoryError
        return (
            f"{text.partition('. ')[0]}: lower data.micro_batch_size for training or "
            "generation.batch_size for answers; a sweep's --dry-run estimates the memory"
        )
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _full_temporary_folder(file: str | None) -> str | None:
    """Returns the temporary folder if `file` lies in it, or if only its disk is full."""
    try:
        folder = tempfile.gettempdir()
        if file is not None:
            return folder if os.path.abspath(file).startswith(os.path.join(folder, "")) else None
        full = shutil.disk_usage(folder).free < _LITTLE_SPACE
        return folder if full and shutil.disk_usage(".").free >= _LITTLE_SPACE else None
    except OSError:
        return os.environ.get("TMPDIR")


_LITTLE_SPACE = 2**20
"""Bytes below which a disk counts as full."""


def _is_called_too_early(error: BaseException) -> bool:
    """Returns whether the callable that a `_target_` names needs arguments that only a run gives it."""
    return isinstance(error.__cause__, TypeError) and "required positional arg" in str(error.__cause__)
