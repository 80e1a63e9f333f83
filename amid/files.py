"""Files that appear whole or not at all, and are checked when they are read back.

Records are JSON or YAML with a checksum of their own and a shape. The checksums of other files stand in a
record.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import xxhash
import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from amid.console import announce
from amid.errors import Damaged

ADAPTER_CONFIG = "adapter_config.json"
"""The file that makes a folder or repository one of adapters, by PEFT."""


@contextlib.contextmanager
def written_whole(target: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a path to write to; the file there replaces `target` once the block ends without an error.

    Args:
        target: the path of the file, in a folder that exists.
        durable: whether to write the bytes to the disk first, so that a loss of power leaves either the old
            file or the new one.
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
"""The suffix of a file that is being written, or was being written when its process was killed."""


def forget_parts(folder: Path, name: str = "*") -> None:
    """Deletes the partial files of killed processes in `folder`, or only the ones of the file `name`.

    No other process may be writing these files.
    """
    for part in folder.glob(f".{name}.*{PART}"):
        part.unlink()


SECONDS_WITHOUT_A_WORD = 3.0
"""The longest wait for another process that prints nothing."""


@contextlib.contextmanager
def only_writer(place: Path, what: str) -> Iterator[None]:
    """Waits until no other process writes `what` to a file or folder, and keeps others from it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_suffix(".lock"))
    try:
        lock.acquire(timeout=SECONDS_WITHOUT_A_WORD)
    except Timeout:
        announce(f"Waiting for another run that writes {what} in {place}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_json(file: Path, content: Mapping[str, Any], durable: bool = True) -> None:
    """Writes a JSON object, with its own checksum as `checksum`, into a file that appears whole or not at
    all."""
    with written_whole(file, durable) as part:
        part.write_text(json_with_sum(content), encoding="utf-8")


def json_with_sum(content: Mapping[str, Any], ascii: bool = True) -> str:
    """Returns the text of a JSON object; its first key, `checksum`, holds the `key_of` the other keys."""
    plain = json.loads(json.dumps(content))
    return json.dumps({SUM: key_of(plain)} | plain, indent=1, ensure_ascii=ascii) + "\n"


def yaml_with_sum(text: str) -> str:
    """Returns the text of a YAML mapping; its first key, `checksum`, holds the `key_of` the other keys."""
    return f"{SUM}: '{key_of(_yaml(text))}'\n{text}"


SUM = "checksum"


def read_mapping(file: Path, remedy: str) -> dict[str, Any] | None:
    """Reads a JSON object or a YAML mapping from a file, without its checksum; None if there is no file.

    A file without a checksum, such as one from another program or an earlier version, is not compared. YAML
    may hold plain values only: no tags and no aliases, which amid never writes.

    Args:
        file: its name ends in `.json` or `.yaml`.
        remedy: what to do about a damaged file, for the message.

    Raises:
        Damaged: if the file is not readable, holds something else, or does not match its checksum.
    """
    read = _yaml if file.suffix == ".yaml" else json.loads
    try:
        check_regular(file, remedy)
        text = file.read_bytes().decode("utf-8")
        content = read(text)
        check_values(text, content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Damaged(f"{file} cannot be read ({error.strerror}); check its rights, or {remedy}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, Damaged):
            raise
        raise damaged(file, error, remedy) from error
    if not isinstance(content, dict):
        raise damaged(file, "it holds no mapping" if content is not None else "it is empty", remedy)
    if SUM in content and content.pop(SUM) != key_of(content):
        raise damaged(file, "its content is not that of its checksum", remedy)
    return content


def check_regular(file: Path, remedy: str) -> None:
    """Checks that a file can be read to its end, which a pipe and a device may not have.

    Raises:
        Damaged: if it is no regular file.
        OSError: if there is no file.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise Damaged(f"{file} is no regular file; {remedy}")


def check_own(folder: Path, within: Iterable[str], remedy: str) -> None:
    """Checks that files written into a folder, and into folders in it, do not land elsewhere through a link.

    Args:
        folder: the folder, which may be a link itself.
        within: the names of folders in it.
        remedy: the remedy in the message.

    Raises:
        Damaged: naming a link in one of them.
    """
    for place in (folder, *(folder / name for name in within)):
        if place.is_dir() and (links := sorted(file for file in place.iterdir() if file.is_symlink())):
            raise Damaged(f"{links[0]} is a link, and writing would change what it leads to; {remedy}")


DEEPEST = 100
"""The most levels of nested mappings and lists in a file that is read back."""


def check_values(text: str, content: Any) -> None:
    """Refuses content of JSON or YAML that a parser accepts but no other code can use.

    Raises:
        ValueError: for values that JSON does not have, for half a character, such as the escape \\ud800, or
            for more than `DEEPEST` levels.
    """
    nodes = [content]
    for _ in range(DEEPEST):
        kinds = set(map(type, nodes))
        if strange := kinds - _KINDS:
            first = next(kind for kind in map(type, nodes) if kind in strange)
            raise ValueError(f"it has a {first.__name__}")
        if not kinds & {dict, list}:
            break
        nodes = [child for node in nodes if isinstance(node, dict | list) for child in _children(node)]
    else:
        if nodes:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    if _HALF.search(text):
        try:
            json.dumps(content, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it has half a character") from error


def _children(node: dict[Any, Any] | list[Any]) -> list[Any]:
    return [*node, *node.values()] if isinstance(node, dict) else node


_KINDS = {dict, list, str, int, float, bool, type(None)}
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _yaml(text: str) -> Any:
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)):
        raise ValueError("it has an alias")
    return yaml.load(text, _LOADER)  # a list of plain values


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Record(BaseModel):
    """The shape of a file that is read back: fields by name and type, without conversion.

    Unknown fields, such as fields of a later version, are ignored.
    """

    model_config = ConfigDict(strict=True, extra="ignore")


R = TypeVar("R", bound=Record)


def read_record(file: Path, shape: type[R], remedy: str) -> R | None:
    """Reads a file with `read_mapping` as a record of a given shape; returns None if there is no file.

    Raises:
        Damaged: see `read_mapping`, or if a field is missing or of another type.
    """
    content = read_mapping(file, remedy)
    return None if content is None else as_record(content, shape, file, remedy)


def as_record(content: Any, shape: type[R], file: Path, remedy: str) -> R:
    """Returns the content of `file` as a record.

    Raises:
        Damaged: if a field is missing or of another type.
    """
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise damaged(file, f"{where}: {first['msg']}".removeprefix(": "), remedy) from error


def read_made(file: Path, shape: type[R]) -> R | None:
    """Reads a record that amid can make again; None if it is missing, or damaged, which it prints."""
    try:
        return read_record(file, shape, "")
    except Damaged as error:
        announce(f"{str(error).removesuffix('; ')}: made again")
        return None


def damaged(file: Path, reason: str | Exception, remedy: str) -> Damaged:
    """Returns the error that says in one line what is wrong with a file."""
    return Damaged(f"{file} is damaged ({' '.join(str(reason).split())}); {remedy}")


def sums_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Returns the checksums of files in a folder, by their paths relative to the folder."""
    return {str(file.relative_to(folder)): str(checksum(file)) for file in sorted(files)}


def check_sums(folder: Path, sums: Mapping[str, str], remedy: str) -> None:
    """Checks that files in a folder have these checksums (`sums_of`).

    Raises:
        Damaged: naming the first file that is missing or has another checksum.
    """
    for name, written in sums.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            check_regular(folder / name, remedy)
        found = checksum(folder / name)
        if found is None:
            raise Damaged(f"{folder / name} is missing; {remedy}")
        if found != written:
            raise damaged(folder / name, "its bytes are not those that were written", remedy)


def key_of(content: Any) -> str:
    """Returns a short hash of a JSON value."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(values: Iterable[Any]) -> str:
    """Returns a hash of a series of JSON values, which are taken one after the other."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, default=str).encode() + b"\n")
    return digest.hexdigest()


def checksum(file: Path) -> str | None:
    """Returns the checksum of a file's bytes; None if there is no file.

    It reads the whole file. A process reads a file again only if its size or modification time changes.
    """
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _checksum(file, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _checksum(file: Path, size: int, mtime_ns: int, inode: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
