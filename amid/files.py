"""Files that appear whole or not at all, and are told apart by what is in them."""

import contextlib
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout


@contextlib.contextmanager
def written_whole(target: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `target` once the block ends without an error.

    Args:
        target: of a folder that exists.
        durable: whether the bytes are on the disk before that, so that a loss of power leaves the old file
            or the new one.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PART}")
    try:
        yield part
        if durable:
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


PART = ".part"
"""How the names end of files that are being written, or were when their process was killed."""


def forget_parts(folder: Path, name: str = "*") -> None:
    """Deletes what killed processes left of files in `folder`, or of those called `name`, which nothing else
    may be writing."""
    for part in folder.glob(f".{name}.*{PART}"):
        part.unlink()


@contextlib.contextmanager
def only_writer(place: Path, what: str) -> Iterator[None]:
    """Waits until no other process writes `what` to a file or folder, and keeps others from it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another run that writes {what} in {place}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that appears whole or not at all."""
    with written_whole(file) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none, or it is damaged."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def key_of(content: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def checksum(file: Path) -> str | None:
    """The checksum of a file's bytes; None where there is none.

    The file is read in full, once in a process while its size and time of change stay the same.
    """
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return _checksum(file, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.cache
def _checksum(file: Path, size: int, mtime_ns: int, inode: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
