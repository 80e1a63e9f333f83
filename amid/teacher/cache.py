"""The teacher cache: the teacher's hidden states and head on disk, under a key of all that decides them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from amid.console import announce, in_bytes
from amid.data.tokens import MicroBatch, Tokens, collate, counted_positions
from amid.distributed import ranks
from amid.errors import InputError
from amid.files import Record, checksum, forget_parts, key_of, only_writer, read_made, write_json
from amid.losses import Head
from amid.teacher.signals import CachedTeacher, LiveTeacher
from amid.teacher.state_codes import EXACT, bytes_of_position
from amid.teacher.state_store import StateFolder, States
from amid.tensor_files import write_tensors
from amid.tracking.progress import Progress

FORMAT = 2
"""Version of the cache's files and of how they are made; another version makes another cache."""

HEAD, MANIFEST = "head.safetensors", "teacher.json"


class _Head(Record):
    scale: float
    softcap: float | None
    checksum: str


class _Manifest(Record):
    made_from: dict[str, Any]
    head: _Head


class TeacherCache:
    """A teacher's states over several sets of sequences, in `cache_dir/teacher-KEY`.

    KEY is a hash of the teacher's weights, configuration, layers and dtype, of its precision, and of the
    version of transformers, which computes the states. The torch version and the device are not part of KEY:
    they change only the last digits. The states of a set are in a folder named by a hash of its token ids and
    prompt lengths, which follow from data, template, tokenizer and limits. Exact states keep the teacher's
    dtype; a lossy code is part of KEY.

    Args:
        cache_dir: the folder in which the cache's folder is made.
        teacher: all that decides the teacher's values (`ModelSource.fingerprint`).
        precision: Lightning's precision, in which the teacher is run.
        sets: the sequences; rows are numbered on from set to set, from the number of the first row.
        code: how the states are written (`amid.teacher.state_codes`).
    """

    def __init__(
        self,
        cache_dir: Path,
        teacher: dict[str, Any],
        precision: str,
        sets: Sequence[Tokens],
        code: str = EXACT,
    ) -> None:
        self.code = code
        self.made_from = {
            "format": FORMAT,
            "teacher": teacher,
            "precision": precision,
            "transformers": transformers.__version__,
        } | ({} if code == EXACT else {"states": code})
        self.folder = cache_dir / f"teacher-{key_of(self.made_from)}"
        self.sets = sets
        self._parts = []
        for tokens in sets:
            made_from = {"teacher": self.made_from, "tokens": tokens.fingerprint}
            order = sorted(range(len(tokens)), key=tokens.lengths.__getitem__)
            folder = self.folder / f"tokens-{tokens.fingerprint[:16]}"
            self._parts.append(StateFolder(folder, tokens.counted, order, made_from, code))

    def open(self) -> CachedTeacher | None:
        """Verifies the whole cache and returns its teacher; None if some states are still to be written."""
        head = self._head()
        if head is None:
            return None
        parts = []
        for part in self._parts:
            states = part.open()
            if states is None:
                return None
            parts.append(states)
        return CachedTeacher(head, States.joined(parts), self.sets[0].first)

    def opened(self) -> CachedTeacher:
        """Verifies the cache, which was whole before, and returns its teacher.

        Raises:
            OSError: if it has changed since.
        """
        found = self.open()
        if found is None:
            raise OSError(f"the teacher's states in {self.folder} have changed since they were written")
        return found

    def lock(self) -> AbstractContextManager[None]:
        """Waits until no other process writes this cache, and keeps others from it."""
        return only_writer(self.folder, "the teacher's states")

    def write(self, teacher: LiveTeacher, fabric: L.Fabric, tokens_per_forward: int, share: float) -> None:
        """Writes the states that are missing or damaged; needs `lock`.

        The ranks of a run share the files out.

        Args:
            teacher: the teacher that computes the states.
            fabric: the teacher's device and precision.
            tokens_per_forward: tokens, with padding, that go through the teacher at once.
            share: the largest share of the free disk space that the states may take.

        Raises:
            InputError: if the teacher's head cannot be split off, or the disk space is not there.
        """
        head = teacher.head
        if head is None:
            raise InputError(
                f"the head of {type(teacher.model).__name__} cannot be split off from its body; "
                "use teacher=live"
            )
        teacher.to(fabric.device)
        head = head.to(fabric.device)
        with fabric.autocast(), torch.inference_mode():
            first = self.sets[0]
            shortest = min(range(len(first)), key=first.lengths.__getitem__)
            (batch,) = collate([first[shortest]], pad_token_id=0)
            probe = _states(teacher, batch, fabric)
        width, dtype = probe.shape[1], probe.dtype
        positions, total = 0, 0
        missing = ranks.from_first(lambda: [part.missing(width, dtype) for part in self._parts])
        for tokens, rows in zip(self.sets, missing, strict=True):
            counted, lengths = tokens.counted, tokens.lengths
            positions += sum(counted[row] for row in rows)
            total += sum(lengths[row] for row in rows)
        each = bytes_of_position(self.code, width, dtype)
        size = positions * each
        of_each = f"{width} × {dtype.itemsize}" if self.code == EXACT else f"({width} + {each - width})"
        told = f"{positions:,} positions × {of_each} bytes = {in_bytes(size)}"
        free = ranks.from_first(lambda: shutil.disk_usage(self.folder.parent).free)
        if size + head.weight.nbytes > share * free:
            raise InputError(
                f"the teacher's states to be written are {told}, and in {self.folder.parent} "
                f"{in_bytes(free)} are free; free some, choose another data.cache_dir=, or use teacher=live"
            )
        announce(f"Writing the teacher's states, {told}, in {self.folder} ({in_bytes(free)} free)")
        ranks.from_first(lambda: self._write_head(head))
        with Progress("teacher's states", total) as progress:
            for tokens, part in zip(self.sets, self._parts, strict=True):

                def states_of(rows: Sequence[int], tokens: Tokens = tokens) -> Iterator[Tensor]:
                    chosen = [tokens[row] for row in rows]  # of ascending length, as `collate` keeps them
                    for batch in collate(chosen, pad_token_id=0, tokens_per_batch=tokens_per_forward):
                        with fabric.autocast(), torch.inference_mode():
                            states = _states(teacher, batch, fabric)
                        progress.advance(ranks.number() * int(batch["attention_mask"].sum()))
                        yield states

                part.write(width, dtype, states_of, head)
        announce(f"Written in {progress.seconds:.0f} s, {progress.rate:,.0f} tokens/s")

    def _write_head(self, head: Head) -> None:
        self.folder.mkdir(exist_ok=True)
        forget_parts(self.folder)
        tensors = {"weight": head.weight.detach().cpu()}
        if head.bias is not None:
            tensors["bias"] = head.bias.detach().cpu()
        digest = write_tensors(self.folder / HEAD, tensors)
        about = {"scale": head.scale, "softcap": head.softcap, "checksum": digest}
        write_json(self.folder / MANIFEST, {"made_from": self.made_from, "head": about})

    def _head(self) -> Head | None:
        manifest = read_made(self.folder / MANIFEST, _Manifest)
        digest = checksum(self.folder / HEAD)
        if manifest is None or manifest.made_from != self.made_from or manifest.head.checksum != digest:
            return None
        tensors = {name: tensor.clone() for name, tensor in load_file(self.folder / HEAD).items()}
        return Head(tensors["weight"], tensors.get("bias"), manifest.head.scale, manifest.head.softcap)


def _states(teacher: LiveTeacher, batch: MicroBatch, fabric: L.Fabric) -> Tensor:
    """Computes the teacher's states at the counted positions of a batch."""
    batch = {name: value.to(fabric.device) for name, value in batch.items()}
    return teacher.hidden(batch, counted_positions(batch))
