"""Archives of runs: zip files with the records that a report needs, and nothing else."""

import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from amid.config.run_settings import CONFIG_FILE
from amid.errors import Damaged, InputError
from amid.files import damaged, written_whole
from amid.results import RESULT_FILE

LARGEST = 2**31
"""The most bytes of the unpacked records in an archive."""

MOST = 100_000
"""The most files in an archive."""

_REMEDY = "copy it again, or make it again: amid report FOLDER --archive FILE"
_WRITTEN = (1980, 1, 1, 0, 0, 0)
"""The time of every file in an archive, so that equal records give equal archives."""


def write_archive(file: Path, runs: Mapping[str, Path]) -> None:
    """Writes the records of runs into a zip file, which appears whole or not at all.

    The records of a run are `result.json`, `config.yaml`, `metrics*.csv` and what `generations/` and the
    folders of other temperatures in it hold. Equal records give equal bytes.

    Args:
        file: the path of the archive. An existing file is replaced; its folder is made.
        runs: the folders of the runs, by their names in the archive.

    Raises:
        InputError: if `file` is not named *.zip or cannot be written there, or the records exceed the limits
            of `read_archive`.
    """
    if file.suffix != ".zip" or file.is_dir():
        raise InputError(f"--archive {file} is no name of a zip file; give one, such as outputs/runs.zip")
    records = {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folder in sorted(runs.items())
        for path in sorted([*folder.iterdir(), *folder.glob("generations/**/*")])
        if path.is_file() and _is_record(PurePosixPath(path.relative_to(folder)))
    }
    size = sum(path.stat().st_size for path in records.values())
    if size > LARGEST or len(records) > MOST:
        raise InputError(
            f"--archive {file}: {len(records)} records of {size / 1e9:.1f} GB are more than an archive may "
            f"have ({MOST} of {LARGEST / 1e9:.1f} GB); make one of fewer runs"
        )
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = stack.enter_context(written_whole(file))
            archive = stack.enter_context(zipfile.ZipFile(part, "w"))
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"--archive {file} cannot be written ({error.strerror}); choose another folder for it"
            ) from error
        for name, path in records.items():
            entry = zipfile.ZipInfo(name, _WRITTEN)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


@contextmanager
def read_archive(file: Path) -> Iterator[Path]:
    """Yields a temporary folder with the records of runs from a zip file; deletes it at the end of the block.

    Any program may have made the archive. Files that are no records (`write_archive`), such as checkpoints,
    are not unpacked. An `InputError` in the block names the archive in place of the temporary folder.

    Raises:
        Damaged: if the file is no zip file, a record is damaged, or its name leads out of the archive.
        InputError: if the archive has more than `MOST` files, or records of more than `LARGEST` bytes.
    """
    with tempfile.TemporaryDirectory(prefix="amid-runs-") as temporary:
        folder = Path(temporary).resolve()
        try:
            _unpack(file, folder)
            yield folder
        except InputError as error:
            raise type(error)(str(error).replace(str(folder), str(file))) from error


def _unpack(file: Path, folder: Path) -> None:
    try:
        archive = zipfile.ZipFile(file)
    except (*_BROKEN, OSError) as error:
        raise damaged(file, error, _REMEDY) from error
    with archive:
        entries = archive.infolist()
        records = [entry for entry in entries if _is_record(PurePosixPath(entry.filename))]
        size = sum(entry.file_size for entry in records)  # zipfile reads no more than that of each
        if size > LARGEST or len(entries) > MOST:
            raise InputError(
                f"{file} has {len(entries)} files and records of {size / 1e9:.1f} GB, which is more than an "
                f"archive may have ({MOST} and {LARGEST / 1e9:.1f} GB); unpack it and report the folder"
            )
        for entry in records:
            path = PurePosixPath(entry.filename)
            if path.is_absolute() or {"..", "\\", ":"} & {*path.parts, *entry.filename}:
                raise Damaged(f"{file} holds {entry.filename!r}, which leads out of it; {_REMEDY}")
            try:
                content = archive.read(entry)
            except (*_BROKEN, OSError) as error:
                raise damaged(file, f"{entry.filename}: {error}", _REMEDY) from error
            target = folder / path
            if target.exists() or any(parent.is_file() for parent in target.parents):
                raise Damaged(f"{file} holds {entry.filename!r} twice; {_REMEDY}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
"""The errors that zipfile raises for damaged, encrypted and unknown kinds of content."""


def _is_record(path: PurePosixPath) -> bool:
    """Returns whether a file is a record of a run, by its path from the run's folder or a folder above."""
    return (
        path.name in (RESULT_FILE, CONFIG_FILE)
        or path.match("metrics*.csv")
        or (
            "generations" in [above.name for above in path.parents[:2]] and path.suffix in (".json", ".jsonl")
        )
    )
