"""The place of a stored model: a folder, a GGUF file, or a repository of the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from amid.errors import InputError, first_line, shortened
from amid.files import ADAPTER_CONFIG, checksum, key_of, read_mapping
from amid.models.hub import HTTPError, ask_its_cache_alone_if_it_is_silent, reason_of, trouble_with

_ON_HUB = re.compile(r"(?P<repository>[^/@]+(/[^/@]+)?)(@(?P<revision>[^@]+))?")
_GGUF_ON_HUB = re.compile(r"(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<file>[^@]+\.gguf)")

_WEIGHTS = (".json", ".safetensors", ".bin")
"""Kinds of files in a folder that decide a model's values."""


@dataclass(frozen=True)
class Location:
    """Where the files of a model or tokenizer are.

    Args:
        path: the path as the user gave it.
        place: a folder, or the id of a repository on the hub.
        revision: a branch, tag or commit of the repository; null for its main branch.
        gguf_file: the GGUF file in that place; null for files of transformers.
    """

    path: str
    place: str
    revision: str | None = None
    gguf_file: str | None = None

    @classmethod
    def of(cls, path: str) -> "Location":
        """The location that a path names; for a path on the hub, looks first whether the hub answers.

        Args:
            path: a folder, a GGUF file, or on the hub `OWNER/NAME`, `OWNER/NAME@REVISION` or
                `OWNER/NAME/FILE.gguf`.

        Raises:
            InputError: for a GGUF file that does not exist.
        """
        if Path(path).is_dir():
            return cls(path, path)
        if path.endswith(".gguf") and Path(path).is_file():
            return cls(path, str(Path(path).parent), gguf_file=Path(path).name)
        in_repository = _GGUF_ON_HUB.fullmatch(path)
        if path.endswith(".gguf") and in_repository is None:
            raise InputError(f"model path={path!r} does not exist; give the path of a GGUF file")
        ask_its_cache_alone_if_it_is_silent()
        if in_repository is not None:
            return cls(path, in_repository["repository"], in_repository["revision"], in_repository["file"])
        named = _ON_HUB.fullmatch(path)
        return cls(path, path) if named is None else cls(path, named["repository"], named["revision"])

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that name the place to transformers, and forbid it to run code from there."""
        gguf = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"pretrained_model_name_or_path": self.place, "trust_remote_code": False, **revision, **gguf}

    def file(self, name: str) -> Path | None:
        """The path of a file of this place, downloaded if need be; None if there is none to be had."""
        found = cached_file(
            self.place,
            name,
            revision=self.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    def base(self) -> str | None:
        """The path of the model that the adapters in this place belong to; None if it holds no adapters.

        Raises:
            InputError: if the adapters do not name their model.
        """
        if self.gguf_file is not None:
            return None
        try:
            file = self.file(ADAPTER_CONFIG)
        except OSError:  # the model's own files give the reason
            return None
        if file is None:
            return None
        settings = read_mapping(file, "give another copy of the adapters") or {}
        model, revision = settings.get("base_model_name_or_path"), settings.get("revision")
        if not isinstance(model, str) or not model:
            raise InputError(
                f"model path={self.path!r}: its {ADAPTER_CONFIG} does not name the model of the adapters; "
                "write the model's path there, as base_model_name_or_path"
            )
        return f"{model}@{revision}" if revision and not Path(model).exists() else model

    def contents(self) -> str:
        """A hash of the files of a folder (configuration and weights) or of a GGUF file, or the commit of a
        repository on the hub.

        Raises:
            InputError: if there is nothing at the path.
        """
        folder = Path(self.place)
        if folder.is_dir():
            own = self.gguf_file
            files = [f for f in folder.iterdir() if f.suffix in _WEIGHTS] if own is None else [folder / own]
            return key_of({file.name: checksum(file) for file in sorted(files)})
        name = self.gguf_file or (CONFIG_NAME if self.base() is None else ADAPTER_CONFIG)
        try:
            file = Path(hf_hub_download(self.place, name, revision=self.revision))
        except (OSError, ValueError, HTTPError) as error:
            raise self.not_loadable("model", error) from error
        commit = file.parents[len(Path(name).parts) - 1].name
        return commit if self.gguf_file is None else f"{commit}/{name}"

    def not_loadable(self, what: str, error: Exception) -> InputError:
        """The error that says in one line why the model or tokenizer of this place could not be loaded."""
        if "trust_remote_code" in str(error):
            return InputError(
                f"{what} path={self.path!r} needs code of its own, which amid does not run; choose a model "
                "whose architecture transformers has"
            )
        is_there = Path(self.path).exists()
        if not is_there and (trouble := trouble_with(error, self.place)) is not None:
            return InputError(f"{what} path={self.path!r} {trouble}")
        where = "is there, but" if is_there else "is no folder here, and"
        reason = shortened(first_line(error) if is_there else reason_of(error))
        return InputError(
            f"{what} path={self.path!r} {where} could not be loaded ({reason}); give a hub id that can be "
            "reached, a folder written by save_pretrained, or a GGUF file"
        )
