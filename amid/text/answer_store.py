"""Answers of a teacher on disk: one to each of many prompts, written once, verified."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from amid.data.tokens import Tokens
from amid.distributed import ranks
from amid.files import Record, checksum, forget_parts, key_of, read_made, write_json
from amid.generation.sampling import Sampling
from amid.teacher.state_store import MANIFEST
from amid.tensor_files import write_tensors
from amid.text.base import prompts_of
from amid.tracking.progress import Progress

FORMAT = 1
"""Version of the teacher's answers on disk and of how they are made; another version makes another folder."""

PART_ROWS = 1024
"""The number of prompts that each file holds."""


class _Manifest(Record):
    made_from: dict[str, Any]
    checksums: dict[str, str]


class AnswerFolder:
    """A folder with one answer to each of many prompts.

    `manifest.json` says what they were made from, and has a checksum for each file. A file holds prompts and
    answers of `PART_ROWS` rows, the shortest prompts first. Every file appears whole or not at all; one that
    is missing, cut or changed is made again alone. Writing needs a lock around it.

    Args:
        folder: made where it does not exist.
        prompts: token ids of the prompts.
        made_from: JSON values of all that the answers follow from; answers of another origin are not used.
    """

    def __init__(self, folder: Path, prompts: Sequence[list[int]], made_from: Mapping[str, Any]) -> None:
        self.folder, self.prompts, self.made_from = folder, prompts, dict(made_from)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        self._parts = [order[start : start + PART_ROWS] for start in range(0, len(order), PART_ROWS)]

    @classmethod
    def of_teacher(
        cls,
        cache_dir: Path,
        teacher: Mapping[str, Any],
        precision: str,
        tokens: Tokens,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        seed: int,
    ) -> "AnswerFolder":
        """The folder `cache_dir/text-KEY` of a teacher's answers to the prompts of `tokens`.

        KEY is a hash of the teacher's weights, layers and dtype (its fingerprint), of the precision and the
        version of transformers, of the prompts, and of the settings that change an answer.
        """
        prompts = prompts_of(tokens)
        settings = ("max_new_tokens", "temperature", "top_p", "top_k")
        made_from = {
            "format": FORMAT,
            "teacher": teacher,
            "precision": precision,
            "transformers": transformers.__version__,
            "prompts": hashlib.sha256(str(prompts).encode()).hexdigest(),
            "tokens": [tokenizer.eos_token_id, len(tokenizer)],
            "sampling": {name: getattr(sampling, name) for name in settings},
            "seed": seed if sampling.temperature else None,
        }
        return cls(cache_dir / f"text-{key_of(made_from)}", prompts, made_from)

    def open(self) -> Tokens | None:
        """Returns prompts and answers in the prompts' order; None if some are still to be written."""
        checksums = self._checksums()
        if not all(self._whole(part, checksums) for part in range(len(self._parts))):
            return None
        rows: list[tuple[list[int], int]] = [([], 0)] * len(self.prompts)
        for part, places in enumerate(self._parts):
            tokens = Tokens.of_tensors(load_file(self.folder / self._file(part)))
            for place, row in zip(places, tokens, strict=True):
                rows[place] = (row.ids.tolist(), row.n_prompt)
        return Tokens.of(rows)

    def write(self, answer: Callable[[Sequence[Sequence[int]], int], list[list[int]]]) -> None:
        """Writes the files that are missing or damaged.

        `answer(prompts, part)` gives the answers of a file's prompts, and its number. The ranks of a run
        share the prompts out, and the first one writes.
        """
        checksums = ranks.from_first(self._begin)
        waiting = ranks.from_first(
            lambda: [part for part in range(len(self._parts)) if not self._whole(part, checksums)]
        )
        with Progress("teacher's text", len(self.prompts), unit="answers") as progress:
            for part, places in enumerate(self._parts):
                if part in waiting:
                    prompts = [self.prompts[place] for place in places]
                    answers = answer(prompts, part)
                    rows = [([*p, *ids], len(p)) for p, ids in zip(prompts, answers, strict=True)]
                    if ranks.is_first():
                        self._keep(part, Tokens.of(rows), checksums)
                progress.advance(len(places))

    def _begin(self) -> dict[str, str]:
        """Makes the folder; returns the checksums of its files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        forget_parts(self.folder)
        return self._checksums()

    def _keep(self, part: int, rows: Tokens, checksums: dict[str, str]) -> None:
        """Writes a file, and adds its checksum to `checksums` and to the manifest."""
        file = self._file(part)
        checksums[file] = write_tensors(self.folder / file, rows.tensors)
        write_json(self.folder / MANIFEST, {"made_from": self.made_from, "checksums": checksums})

    def _checksums(self) -> dict[str, str]:
        manifest = read_made(self.folder / MANIFEST, _Manifest)
        return manifest.checksums if manifest and manifest.made_from == self.made_from else {}

    def _file(self, part: int) -> str:
        return f"answers-{part:05d}.safetensors"

    def _whole(self, part: int, checksums: Mapping[str, str]) -> bool:
        file = self._file(part)
        return file in checksums and checksums[file] == checksum(self.folder / file)
