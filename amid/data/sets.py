"""The rows that a data source names: files, folders, and data sets of the hub by configuration and split."""

import contextlib
import fnmatch
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from amid.config.data_files import HUB_PREFIX, Place
from amid.console import announce
from amid.data.formats import Rows, is_read, rows_of, without_nulls
from amid.errors import InputError, chain_of, first_line, shortened
from amid.models.hub import HTTPError, ask_its_cache_alone_if_it_is_silent, commit_of, reason_of, trouble_with

Use = Literal["train", "valid", "test"]
"""What the rows are for, which chooses the split where a source names none."""

_SPLITS: Mapping[Use, Sequence[str]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Found:
    """The rows that a source names, before its slice is taken."""

    what: str
    """The source in words: its file or files, or its name, configuration, split and revision."""
    rows: Rows


def rows_at(place: Place, use: Use) -> Found:
    """Returns the rows at a place, which are read in a stream.

    A data set of the hub is downloaded whole, into the cache of `datasets`. If the slice has an end, rows
    are read from the hub as far as they are asked for, and nothing is kept.

    Raises:
        InputError: for what is not there, has no such configuration or split, or cannot be read. While rows
            are read, it is raised for the row that cannot be read.
    """
    if place.kind == "files":
        files = [Path(file) for file in place.files]
        what = place.path if len(files) == 1 else f"{len(files):,} files {place.path}"
        return Found(what, chain.from_iterable(map(rows_of, files)))
    if place.kind == "hub file":
        return Found(_address(place), chain.from_iterable(map(rows_of, map(downloaded, _hub_files(place)))))
    with _refused_in_one_line(place):
        if place.kind == "hub set":
            return _of_hub(place, use)
        is_saved = any((Path(place.path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
        return _saved(place, use) if is_saved else _of_folder(place, use)


def downloaded(place: Place) -> Path:
    """Returns the file of the hub at a place, in the hub's cache.

    Raises:
        InputError: if it is not there and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    owner, name, file = place.path.split("/", 2)
    ask_its_cache_alone_if_it_is_silent()
    with _refused_in_one_line(place):
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=place.revision))


def _hub_files(place: Place) -> list[Place]:
    """The files of the hub that a place names, in the order of their names; several only for a pattern."""
    if not glob.has_magic(place.path):
        return [place]
    from huggingface_hub import HfApi

    owner, name, pattern = place.path.split("/", 2)
    ask_its_cache_alone_if_it_is_silent()
    with _refused_in_one_line(place):
        there = HfApi().list_repo_files(f"{owner}/{name}", repo_type="dataset", revision=place.revision)
    found = [file for file in sorted(there) if fnmatch.fnmatchcase(file, pattern)]
    if not found:
        raise InputError(
            f"data source {place.source!r}: no file of {owner}/{name} matches {pattern}; it has "
            f"{shortened(', '.join(sorted(there)), 200)}"
        )
    return [replace(place, path=f"{owner}/{name}/{file}") for file in found]


def _saved(place: Place, use: Use) -> Found:
    """The rows of a folder that `save_to_disk` wrote."""
    from datasets import DatasetDict, load_from_disk

    _check_saved(place)
    found = load_from_disk(place.path)
    split = None
    if isinstance(found, DatasetDict):
        first, *others = place.names or ("",)
        if others and first not in ("", "default"):
            raise InputError(
                f"data source {place.source!r}: {place.path} has no configuration {first!r}, as save_to_disk "
                f"wrote it; name the split alone, as in {place.path}::{others[0] or next(iter(found))}"
            )
        split = _split(place, use, [*found], place.names[-1] if place.names else "")
        found = found[split]
    elif any(place.names):
        raise InputError(
            f"data source {place.source!r}: {place.path} is a single split, as save_to_disk wrote it; give "
            "the folder alone"
        )
    what = _described(place.path, "", split)
    return Found(what, _numbered(place, what, found.to_iterable_dataset()))


def _check_saved(place: Place) -> None:
    """Raises InputError if a file in which `save_to_disk` describes the data cannot be read."""
    for name, key in (("dataset_dict.json", "splits"), ("state.json", "_data_files")):
        for file in (*Path(place.path).glob(name), *Path(place.path).glob(f"*/{name}")):
            try:
                found = json.loads(file.read_bytes())
                wrong = "" if isinstance(found, dict) and key in found else f"has no {key!r}"
            except ValueError as error:
                wrong = f"is not valid JSON ({first_line(error)})"
            if wrong:
                raise InputError(f"data source {place.source!r}: {file} {wrong}; save the data set again")


def _of_folder(place: Place, use: Use) -> Found:
    """The rows of a folder of data files, as `datasets.load_dataset` finds them."""
    path = str(Path(place.path).resolve())
    builder, configuration, split = _builder(place, use, _Set(path))
    files = [Path(file) for file in (builder.config.data_files or {}).get(split, ())]
    what = _described(place.path, configuration, split, "", len(files), _left_out(Path(path), builder))
    if files and all(file.is_file() and is_read(file) for file in files) and _is_plain(builder):
        shown = [
            Path(place.path) / file.relative_to(path) if file.is_relative_to(path) else file for file in files
        ]
        return Found(what, chain.from_iterable(map(rows_of, shown)))
    return Found(what, _numbered(place, what, builder.as_streaming_dataset(split=split)))


def _left_out(folder: Path, builder: Any) -> int:
    """The number of data files that `datasets` leaves out of a folder, where most files have another format.

    It is 0 where a card says which files to take.
    """
    if (folder / "README.md").exists():
        return 0
    taken = {str(file) for files in (builder.config.data_files or {}).values() for file in files}
    there = [file for file in folder.rglob("*") if file.is_file() and is_read(file)]
    shown = [file for file in there if not any(part[0] == "." for part in file.relative_to(folder).parts)]
    return sum(str(file) not in taken for file in shown)


def _is_plain(builder: Any) -> bool:
    """Whether the card of a data set says nothing of how its files are read, but for tabs in TSV."""
    given = vars(builder.config)
    usual = vars(type(builder.config)())
    named = {"name", "version", "data_dir", "data_files", "description"}
    other = {name for name in given.keys() - named if given[name] != usual.get(name)}
    return not other or (other <= {"sep", "delimiter"} and given["sep"] == "\t")


def rows_by_card(place: Place, use: Use) -> int | None:
    """Returns the number of rows of a data set of the hub, by its card or its copy in the cache, before the
    slice is taken; None if they do not say it. No data are downloaded.

    Raises:
        InputError: if the hub has no such data set, configuration or split.
    """
    with _refused_in_one_line(place):
        builder, _, split, _ = _at_hub(place, use)
        known = (builder.info.splits or {}).get(split)
        return known.num_examples if known else None


def _of_hub(place: Place, use: Use) -> Found:
    """The rows of a data set of the hub."""
    builder, configuration, split, commit = _at_hub(place, use)
    what = _described(place.path, configuration, split, commit)
    if place.rows.stop is not None and not constants.HF_HUB_OFFLINE:
        return Found(what, _numbered(place, what, builder.as_streaming_dataset(split=split)))
    if not Path(builder.cache_dir).exists():
        announce(f"Downloading {what} from the hub")
    builder.download_and_prepare()
    return Found(what, _numbered(place, what, builder.as_dataset(split=split).to_iterable_dataset()))


def _at_hub(place: Place, use: Use) -> tuple[Any, str, str, str]:
    """Returns what reads a data set of the hub at the commit that its revision stands for; the name of its
    configuration; its split; and the commit."""
    import datasets

    ask_its_cache_alone_if_it_is_silent()
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
    commit = commit_of(place.path, "dataset", place.revision)
    found = (_Cached if constants.HF_HUB_OFFLINE else _Set)(place.path, commit)
    return (*_builder(place, use, found), commit)


class _Set:
    """A folder or a repository as `datasets.load_dataset` finds it."""

    def __init__(self, path: str, commit: str | None = None) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        self.path, self.commit = path, commit
        self.configurations: list[str] = datasets.get_dataset_config_names(path, revision=commit)

    @property
    def default(self) -> str | None:
        """The configuration that is taken if none is named; None if there is none."""
        import datasets

        name: str | None = datasets.get_dataset_default_config_name(self.path, revision=self.commit)
        return name

    def builder(self, configuration: str) -> Any:
        """What reads a configuration."""
        import datasets

        return datasets.load_dataset_builder(self.path, configuration, revision=self.commit)


class _Cached:
    """What the cache of `datasets` has of a commit, for a hub that is not asked."""

    default = None

    def __init__(self, name: str, commit: str) -> None:
        import datasets
        from datasets.naming import camelcase_to_snakecase

        owner, _, self.name = name.partition("/")
        folder = Path(datasets.config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(self.name)}")
        found = [place.parts for place in sorted(folder.glob(f"*/*/{commit}")) if place.is_dir()]
        if not found:
            raise LocalEntryNotFoundError(f"the cache of data sets has no commit {commit} of {name}")
        self.versions = {parts[-3]: parts[-2] for parts in found}
        self.repository, self.commit, self.configurations = name, commit, [*self.versions]

    def builder(self, configuration: str) -> Any:
        """What reads a configuration."""
        from datasets.packaged_modules.cache.cache import Cache

        given = {"repo_id": self.repository, "dataset_name": self.name, "hash": self.commit}
        return Cache(**given, config_name=configuration, version=self.versions[configuration])


def _builder(place: Place, use: Use, found: _Set | _Cached) -> tuple[Any, str, str]:
    """Returns what reads the configuration that a source names, or else the default or only one; the name of
    the configuration; and the split."""
    names = found.configurations
    first, *others = place.names or ("",)
    is_split = not others and first not in names
    configuration = "" if is_split else first
    if not configuration:
        configuration = names[0] if len(names) == 1 else found.default or ""
    if configuration not in names:
        wrong = f"no configuration {configuration!r}" if configuration else "several configurations"
        if is_split and first:
            wrong = f"neither a configuration {first!r} nor a default one with such a split"
        raise InputError(
            f"data source {place.source!r}: {place.path} has {wrong}; name one of {', '.join(names)}, as in "
            f"{place.path}:{names[0]}"
        )
    builder = found.builder(configuration)
    splits = [str(split) for split in (builder.config.data_files or builder.info.splits or ())]
    return (
        builder,
        configuration,
        _split(place, use, splits, others[0] if others else first if is_split else ""),
    )


def _split(place: Place, use: Use, splits: Sequence[str], asked: str) -> str:
    """Returns the split that is asked for, or else the one that fits the use, or the only one."""
    fitting = [split for split in _SPLITS[use] if split in splits]
    if asked in splits:
        return asked
    if not asked and (fitting or len(splits) == 1):
        return (fitting or splits)[0]
    wrong = f"no split {asked!r}" if asked else f"no split {_SPLITS[use][0]!r}"
    example = (
        f"{place.path}:{place.names[0] if len(place.names) > 1 else ''}:{splits[0] if splits else 'SPLIT'}"
    )
    raise InputError(
        f"data source {place.source!r}: {place.path} has {wrong}; name one of {', '.join(splits)}, as in "
        f"{example}"
    )


def _described(
    path: str, configuration: str, split: str | None, commit: str = "", files: int = 1, left_out: int = 0
) -> str:
    shown = "" if configuration == "default" else configuration
    parts = {"configuration": shown, "split": split, "revision": commit[:7]}
    said = [f"{name} {value}" for name, value in parts.items() if value]
    said += [f"{files:,} files"] * (files > 1) + [f"left out: {left_out:,} of other formats"] * (left_out > 0)
    return f"{path} ({', '.join(said)})" if said else path


def _address(place: Place) -> str:
    name, file = place.path.rsplit("/", place.path.count("/") - 1)[0], place.path.split("/", 2)[2]
    return f"{HUB_PREFIX}{name}{f'@{place.revision}' if place.revision else ''}/{file}"


def _numbered(place: Place, what: str, rows: Any) -> Rows:
    """The rows that `datasets` reads, each with its number; images and sounds stay as they are stored."""
    with _refused_in_one_line(place):
        for number, row in enumerate(rows if rows.features is None else rows.decode(False), 1):
            yield f"{what} row {number}", without_nulls(row)


@contextlib.contextmanager
def _refused_in_one_line(place: Place) -> Iterator[None]:
    """Turns an error of the hub or of `datasets` into an InputError that says what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each format and each client of the hub has its own
        raise InputError(f"data source {place.source!r} {_refusal(place, error)}") from error


def _refusal(place: Place, error: Exception) -> str:
    """The end of the message about a data set that cannot be read."""
    name = "/".join(place.path.split("/")[:2])
    if place.kind.startswith("hub") and (trouble := trouble_with(error, f"datasets/{name}")):
        return trouble
    kinds = {type(link).__name__ for link in chain_of(error)}
    text = " ".join(first_line(link) for link in chain_of(error))
    if "EntryNotFoundError" in kinds or "RemoteEntryNotFoundError" in kinds:
        return "is no file that the hub has; check the name"
    if "scripts are no longer supported" in text:
        return (
            "needs a script of its own, which amid does not run; take its copy in Parquet, if the hub has "
            f"made one ({name}@refs/convert/parquet), or its files"
        )
    if kinds & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return "holds no data files; give a folder with JSON, CSV, Parquet or Arrow files"
    from_hub = place.kind.startswith("hub")
    if from_hub and any(isinstance(link, _NOT_REACHED) for link in chain_of(error)):
        where = "is no file or folder here, and " * (place.kind == "hub set")
        reason = shortened(reason_of(error))
        return f"{where}cannot be had ({reason}); check the name and the network, or give a path that is here"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    remedy = (
        f"take files one by one: {HUB_PREFIX}{name}/FILE" if from_hub else "repair it, or take other files"
    )
    return f"cannot be read ({shortened(first_line(cause))}); {remedy}"


_NOT_REACHED = (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
"""Errors of a hub that gives no answer, or another one than it should."""
