"""The status of the runs of a folder: how a run writes its progress, and how other commands read it."""

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from amid.config.run_names import HYDRA_FOLDER
from amid.config.secrets import without_secrets
from amid.errors import Busy, Damaged, InputError, is_mistake, was_interrupted
from amid.files import Record, check_own, forget_parts, read_record, write_json, written_whole
from amid.results import CHECKPOINTS, RESULT_FILE, SKIPPED_FOLDERS, files_below, load
from amid.tracking.command_records import name_of_run, planned

STATUS_FILE = "status.json"
LOCK_FILE = ".lock"

SECONDS_BETWEEN_WRITES = 2.0
"""The least seconds between two status records of a run in training."""

HEARTBEAT = 60.0
"""Seconds between two signs of life of a run that has nothing else to write."""

SILENCE = 600.0
"""A run that has given no sign of life for so many seconds, as while its machine sleeps, counts as failed."""

PREPARING = "preparing"
"""The note of a run before its training."""

STATES = {
    "running": "cyan",
    "done": "green",
    "diverged": "yellow",
    "failed": "red",
    "interrupted": "magenta",
    "waiting": "dim",
}
"""The states of a run, and the colour of each."""


@dataclass(frozen=True)
class Part:
    """The progress of a computation within a run, such as the computation of the teacher's states."""

    name: str
    """Names what is computed; empty if the run's note names it."""
    done: int
    """How much is computed so far."""
    total: int | None
    """How much there is to compute in all; None if that is not known."""


@dataclass(frozen=True)
class RunStatus:
    """The status of one run."""

    name: str
    """The name of its folder."""
    state: str
    """One of `STATES`."""
    step: int = 0
    """Optimiser steps done."""
    steps: int | None = None
    """Optimiser steps of the whole training; None if their number is not known yet."""
    part: Part | None = None
    """The part of the work in `note` that is computed now."""
    loss: float | None = None
    """Mean of the last tenth of the steps."""
    score: float | None = None
    """The last score of validation answers, of `metric`."""
    metric: str | None = None
    seconds_left: float | None = None
    """Seconds left of the work in `note`."""
    note: str = ""
    """The work that the run is doing, or why it failed."""
    seconds: float | None = None
    """Seconds that a finished run took by itself (`RunResult.own_seconds`)."""


_OF_PROGRESS = ("step", "steps", "loss", "score", "metric")
"""Fields that a run which goes on has from its earlier part, until it trains."""

_OF_A_PHASE = ("part", "done", "total", "seconds_left")
"""Fields that are reset when the note changes."""


class StatusRecord(Record):
    """The record that `StatusWriter` writes: fields of `RunStatus`, and of the process."""

    state: Literal["running", "done", "diverged", "failed", "interrupted"]
    pid: int | None = None
    host: str | None = None
    updated: float | None = None
    step: int = 0
    steps: int | None = None
    part: str = ""
    done: int = 0
    total: int | None = None
    loss: float | None = None
    score: float | None = None
    metric: str | None = None
    seconds_left: float | None = None
    note: str = ""


class StatusWriter:
    """Writes the status of the run in `directory`, whole or not at all, from any thread.

    Args:
        directory: the folder of the run; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / STATUS_FILE
        self._lock = threading.Lock()
        self._written = float("-inf")
        self._fields: dict[str, Any] = {"state": "running", "pid": os.getpid(), "host": socket.gethostname()}

    @property
    def due(self) -> bool:
        """Whether the last record is old enough to write another one."""
        return time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES

    def write(self, **fields: Any) -> None:
        """Writes these fields of `RunStatus` over what was written before.

        With a new `note` the part, how far it is, and the time left begin anew.

        Raises:
            OSError: if the file cannot be written.
        """
        with self._lock:
            if "note" in fields:
                self._fields = {name: v for name, v in self._fields.items() if name not in _OF_A_PHASE}
            self._fields |= fields | {"updated": time.time()}
            self._replace()
            self._written = time.monotonic()

    def refresh(self) -> None:
        """Writes the same again, less the time that has passed, as a sign of life.

        Raises:
            OSError: if the file cannot be written.
        """
        with self._lock:
            now = time.time()
            left = self._fields.get("seconds_left")
            if left is not None:
                self._fields["seconds_left"] = max(0.0, left - (now - self._fields["updated"]))
            self._fields["updated"] = now
            self._replace()

    @property
    def progress(self) -> dict[str, Any]:
        """Returns the progress of the run's present work, in the form of a part of another run."""
        fields = self._fields
        of = ("done", "total") if fields.get("total") is not None else ("step", "steps")
        done, total = (fields.get(name) for name in of)
        return {"done": done or 0, "total": total, "seconds_left": fields.get("seconds_left")}

    @property
    def prepares(self) -> bool:
        """Whether the run has not gone on to its training, or to anything after it."""
        return bool(self._fields.get("note") == PREPARING)

    def _replace(self) -> None:
        write_json(self._file, without_secrets(self._fields), durable=False)


_watched: list[StatusWriter] = []
"""The writers of the runs that this process is in: a fine-tuning is within the run that needs its model."""


def due() -> bool:
    """Whether this process is in a run, and the run's last record is old enough to write another one."""
    return bool(_watched) and _watched[-1].due


def record_status(**fields: Any) -> None:
    """Writes fields of `RunStatus` of the run that this process is in; does nothing outside of `watched`.

    The status of the run that needs a fine-tuned model also has the progress of the fine-tuning.

    Raises:
        OSError: if the file cannot be written.
    """
    if _watched:
        *around, run = _watched
        run.write(**fields)
        for status in around:
            status.write(**run.progress)


@contextlib.contextmanager
def only_process_in(directory: Path) -> Iterator[None]:
    """Keeps other processes from the run in `directory`, which exists.

    Raises:
        Busy: where another process is at this run.
        Damaged: if a file or folder of the run is a link, by which something else would be changed.
    """
    remedy = "remove the link, or choose another output_dir= (or hydra.run.dir=, where that was given)"
    rungs = (str(folder.relative_to(directory)) for folder in (directory / "generations").glob("*/"))
    check_own(directory, (HYDRA_FOLDER, CHECKPOINTS, "generations", *rungs), remedy)
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(
            f"{directory} is being run by another process; amid status {directory} tells how far it is"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[None]:
    """Marks the run in `directory` as running, and at its end as done, diverged, failed or interrupted.

    Meanwhile `record_status` writes its status, and a thread a sign of life every minute. A mistake found
    before a begun run goes on leaves its status, and the command that began it, as they were.
    """
    if (directory / RESULT_FILE).exists():
        yield
        return
    forget_parts(directory)
    earlier = None
    with contextlib.suppress(Damaged):  # written anew now
        earlier = read_status_record(directory)
    files = (directory / STATUS_FILE, *(directory / HYDRA_FOLDER).glob("*"))
    before = {file: file.read_bytes() for file in files if file.exists()}
    status = StatusWriter(directory)
    status.write(
        note=PREPARING,
        **(earlier.model_dump(include=set(_OF_PROGRESS), exclude_unset=True) if earlier else {}),
    )
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(status, over), daemon=True)
    heart.start()
    _watched.append(status)
    end: dict[str, str] = {}
    refused = False
    try:
        yield
        if (directory / RESULT_FILE).exists():
            end = {"state": "done" if load(directory).diverged_step is None else "diverged", "note": ""}
    except BaseException as error:
        state = end_of(error)
        end = {"state": state, "note": _reason(error) if state == "failed" else ""}
        refused = is_mistake(error) and status.prepares and _was_begun(earlier)
        raise
    finally:
        _watched.remove(status)
        over.set()
        heart.join()
        with contextlib.suppress(OSError):  # of a full disk, which an error says, and a result outlives
            if refused:
                for file, content in before.items():
                    with written_whole(file) as part:
                        part.write_bytes(content)
            elif end:
                status.write(**end)


def _was_begun(record: StatusRecord | None) -> bool:
    """Whether a status belongs to a run that can be resumed, or that no check refused."""
    return record is not None and (record.state in ("interrupted", "running") or bool(record.step))


def _beat(status: StatusWriter, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with contextlib.suppress(OSError):  # the next one may succeed
            status.refresh()


def end_of(error: BaseException) -> str:
    """The state of a run that `error` ended: interrupted or failed."""
    return "interrupted" if isinstance(error, BrokenPipeError) or was_interrupted(error) else "failed"


def _reason(error: BaseException) -> str:
    """Returns the message of the innermost cause, in one line: Hydra wraps the errors of constructors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def read_status(directory: str | Path) -> list[RunStatus]:
    """Returns the runs in the folder `directory`, started or planned, in the order of the plan, then by name.

    `directory` is the folder of a sweep, or of one run.

    Raises:
        InputError: if it is no folder, or has no runs.
    """
    directory = Path(directory)
    if not directory.is_dir():
        here = "" if directory.is_absolute() else f" in {Path.cwd()}"
        raise InputError(
            f"{directory} is not a folder{here}; give that of a sweep or a run, such as outputs/alpha"
        )
    if _is_run(directory):
        return [_status_of(directory)]
    of_plan = planned(directory)
    started = [
        path.name
        for path in sorted(directory.iterdir())
        if path.is_dir() and path.name not in SKIPPED_FOLDERS and path.name[0] != "." and _is_run(path)
    ]
    names = list(dict.fromkeys([*of_plan, *started]))
    if not names:
        found = (folder for folder in sorted(directory.iterdir()) if folder.is_dir() and _holds_runs(folder))
        raise InputError(
            f"{directory} holds no run; give the folder of a sweep or a run, such as "
            f"{next(found, 'outputs/alpha')}"
        )
    return [_status_of(directory / name) for name in names]


def without_result(directory: Path) -> dict[Path, RunStatus]:
    """The runs below the folder `directory` that were begun and have no result, by their folders."""
    folders = [file.parent for file in files_below(directory, STATUS_FILE)]
    return {folder: _status_of(folder) for folder in folders if not (folder / RESULT_FILE).exists()}


def read_status_record(directory: Path) -> StatusRecord | None:
    """Reads the last status record of the run in `directory`; None if there is none.

    Raises:
        Damaged: if its status.json is damaged.
    """
    remedy = "delete it; a run that goes on writes it anew"
    return read_record(directory / STATUS_FILE, StatusRecord, remedy)


def _holds_runs(directory: Path) -> bool:
    return any(folder.is_dir() and _is_run(folder) for folder in directory.iterdir())


def _is_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in (RESULT_FILE, STATUS_FILE, "config.yaml"))


def _status_of(directory: Path) -> RunStatus:
    status, record, spoilt = RunStatus(name_of_run(directory), "waiting"), None, ""
    try:
        record = read_status_record(directory)
    except Damaged as error:
        spoilt = str(error)
        status = replace(status, state="failed", note=spoilt)
    if record is not None:
        of_run = RunStatus.__dataclass_fields__.keys() - {"part"}
        part = Part(record.part, record.done, record.total)
        status = replace(status, part=part, **record.model_dump(include=of_run, exclude_unset=True))
    if (directory / RESULT_FILE).exists():
        try:
            result = load(directory)
        except InputError as error:
            return replace(status, state="failed", note=str(error), seconds_left=None)
        steps = int(result.training.get("steps", 0))
        for name, (_, kept) in result.validation_scores.items():
            if not math.isnan(kept):
                status = replace(status, metric=name, score=kept)
        diverged = result.diverged_step is not None
        worse = f"far worse than it began: {result.far_worse}" if result.far_worse else ""
        return replace(
            status,
            state="diverged" if diverged else "done",
            step=steps,
            steps=status.steps if diverged else steps,
            seconds_left=None,
            seconds=result.own_seconds,
            note=spoilt or (f"at step {result.diverged_step}" if diverged else worse),
        )
    if record is None:
        ended = status.state == "waiting" and (directory / "config.yaml").exists()
        return replace(status, state="failed", note="ended without a result") if ended else status
    if status.state == "running":
        age = max(0.0, time.time() - (record.updated or 0.0))
        if not _alive(record, age):
            return replace(status, state="failed", note="its process is gone", seconds_left=None)
        if status.seconds_left is not None:
            return replace(status, seconds_left=max(0.0, status.seconds_left - age))
    return status


def _alive(record: StatusRecord, age: float) -> bool:
    """Whether the process that wrote `record`, `age` seconds ago, still runs, as far as is known here."""
    here = record.host == socket.gethostname()
    if not here or record.pid is None or age >= SILENCE:  # then its number may be another's by now
        return age < SILENCE
    try:
        os.kill(record.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
