"""The teacher's signal at the counted positions: from its model, or from its states on disk."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid.data.tokens import NO_ROW, MicroBatch, Tokens, collate, counted_positions
from amid.errors import InputError
from amid.files import Record, checksum, forget_parts, key_of, only_writer, read_made, write_json
from amid.losses import Head
from amid.models.source import CountedStates, ModelSource, output_rows
from amid.teacher.state_store import StateFolder, States, write_tensors
from amid.tracking.progress import Progress, announce, in_bytes

FORMAT = 2
"""Version of the cache's files and of how they are made; another one is another cache."""

HEAD, MANIFEST = "head.safetensors", "teacher.json"

ATTENTION_BLOCK = 16
"""Rows go through the teacher at lengths that are multiples of this one, in which attention on a CPU adds up:
what a row gives is then the same to the last bit in float32, beside whatever other rows it stands."""

MODES = ("live", "cached", "auto")


class LiveTeacher:
    """A frozen model that is run on every batch, always in eval mode.

    It is no `nn.Module`, so that its weights stay out of the student's optimiser and checkpoint.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.requires_grad_(False).eval()
        self._states = CountedStates(self.model)
        self.vocabulary = output_rows(model)

    @property
    def head(self) -> Head | None:
        """What makes logits [N, V] of hidden states; None where it cannot be split off the model."""
        return self._states.head

    def to(self, device: torch.device) -> None:
        """Moves the weights to `device`."""
        self.model.to(device)

    @torch.no_grad()
    def hidden(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The last hidden states [N, D] where `positions` [rows, length] is true, row by row."""
        length = batch["input_ids"].shape[1]
        longer = -length % ATTENTION_BLOCK
        if (most := getattr(self.model.config, "max_position_embeddings", None)) is not None:
            longer = min(longer, max(int(most) - length, 0))
        input_ids = pad(batch["input_ids"], (0, longer))
        return self._states.hidden(input_ids, pad(positions, (0, longer)))

    @torch.no_grad()
    def logits(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The model's own logits [N, V] at these positions."""
        return self._states.logits(batch["input_ids"], positions)


class CachedTeacher:
    """The stored states of a teacher, and its head; no weights of its body.

    Args:
        head: of the teacher.
        states: at the counted positions of each row.
        first: the number that `MicroBatch` gives the first of these rows.
    """

    def __init__(self, head: Head, states: States, first: int = 0) -> None:
        self.head = head
        self.vocabulary = len(head.weight)
        self._states, self._first = states, first

    @property
    def size(self) -> str:
        """The positions and bytes of the states, in words."""
        return f"{self._states.positions:,} positions, {in_bytes(self._states.nbytes)}"

    def to(self, device: torch.device) -> None:
        """Moves the head to `device`; the states stay on disk until they are asked for."""
        self.head = self.head.to(device)

    def hidden(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The last hidden states [N, D] where `positions` [rows, length] is true, row by row.

        `positions` are the batch's counted positions: no others are stored.
        """
        states = self._states[batch["rows"].cpu() - self._first]
        if len(states) != int(positions.sum()):
            raise RuntimeError(f"{len(states)} stored states for {int(positions.sum())} positions")
        return states.to(positions.device)

    def logits(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """Logits [N, V] at the counted positions."""
        return self.head.logits(self.hidden(batch, positions))


class PartlyCachedTeacher:
    """The stored states of the rows that are stored, and the model for all others."""

    def __init__(self, live: LiveTeacher, cached: CachedTeacher) -> None:
        self.live, self.cached = live, cached
        self.model = live.model
        self.vocabulary = cached.vocabulary

    @property
    def head(self) -> Head:
        """That of both."""
        return self.cached.head

    def to(self, device: torch.device) -> None:
        """Moves weights and head to `device`."""
        self.live.to(device)
        self.cached.to(device)

    def hidden(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """The last hidden states [N, D] where `positions` [rows, length] is true, row by row.

        Positions of stored rows are those of the counted tokens.
        """
        return self._of(batch).hidden(batch, positions)

    def logits(self, batch: MicroBatch, positions: Tensor) -> Tensor:
        """Logits [N, V] at these positions."""
        return self._of(batch).logits(batch, positions)

    def _of(self, batch: MicroBatch) -> LiveTeacher | CachedTeacher:
        return self.live if bool((batch["rows"] == NO_ROW).any()) else self.cached


Teacher = LiveTeacher | CachedTeacher | PartlyCachedTeacher


class _Head(Record):
    scale: float
    softcap: float | None
    checksum: str


class _Manifest(Record):
    made_from: dict[str, Any]
    head: _Head


class TeacherCache:
    """A teacher's states over several sets of sequences, in `cache_dir/teacher-KEY`.

    KEY is a hash of the teacher's weights and configuration, layers and dtype, of the precision that it is
    run in, and of the version of transformers, whose models' code computes the states. The versions of torch
    and the device are left out: they change the last digits only.
    The states of a set stand in a folder named by a hash of its token ids and prompt lengths, which follow
    from data, template, tokenizer and limits. They have the dtype that the teacher gives them in.

    Args:
        cache_dir: where the folder is made.
        teacher: what decides the teacher's values (`ModelSource.fingerprint`).
        precision: of Lightning, that the teacher is run in.
        sets: the sequences; rows are numbered on from set to set, from the first one's own number.
    """

    def __init__(
        self, cache_dir: Path, teacher: dict[str, Any], precision: str, sets: Sequence[Tokens]
    ) -> None:
        self.made_from = {
            "format": FORMAT,
            "teacher": teacher,
            "precision": precision,
            "transformers": transformers.__version__,
        }
        self.folder = cache_dir / f"teacher-{key_of(self.made_from)}"
        self.sets = sets
        self._parts = []
        for tokens in sets:
            made_from = {"teacher": self.made_from, "tokens": tokens.fingerprint}
            order = sorted(range(len(tokens)), key=tokens.lengths.__getitem__)
            folder = self.folder / f"tokens-{tokens.fingerprint[:16]}"
            self._parts.append(StateFolder(folder, tokens.counted, order, made_from))

    def open(self) -> CachedTeacher | None:
        """The teacher from its cache, after all of it was verified; None where any is still to be written."""
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

    @property
    def listed(self) -> bool:
        """Whether all states are written, by what the cache says of itself; `open` verifies them."""
        return all(part.listed for part in self._parts)

    def lock(self) -> AbstractContextManager[None]:
        """Waits until no other process writes this cache, and keeps others from it."""
        return only_writer(self.folder, "the teacher's states")

    def write(self, teacher: LiveTeacher, fabric: L.Fabric, tokens_per_forward: int, share: float) -> None:
        """Writes what is not there yet, or not whole; needs `lock`.

        Args:
            teacher: whose states they are.
            fabric: its device and precision.
            tokens_per_forward: tokens, with padding, that go through the teacher at once.
            share: of the free disk space, that may be taken at most.

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
        with fabric.autocast(), torch.inference_mode():
            first = self.sets[0]
            shortest = min(range(len(first)), key=first.lengths.__getitem__)
            (batch,) = collate([first[shortest]], pad_token_id=0)
            probe = _states(teacher, batch, fabric)
        width, dtype = probe.shape[1], probe.dtype
        positions, total = 0, 0
        for tokens, part in zip(self.sets, self._parts, strict=True):
            rows, counted, lengths = part.missing(width, dtype), tokens.counted, tokens.lengths
            positions += sum(counted[row] for row in rows)
            total += sum(lengths[row] for row in rows)
        size = positions * width * dtype.itemsize
        told = f"{positions:,} positions × {width} × {dtype.itemsize} bytes = {in_bytes(size)}"
        free = shutil.disk_usage(self.folder.parent).free
        if size + head.weight.nbytes > share * free:
            raise InputError(
                f"the teacher's states to be written are {told}, and in {self.folder.parent} "
                f"{in_bytes(free)} are free; free some, choose another data.cache_dir=, or use teacher=live"
            )
        announce(f"Writing the teacher's states, {told}, in {self.folder} ({in_bytes(free)} free)")
        self._write_head(head)
        with Progress("teacher's states", total) as progress:
            for tokens, part in zip(self.sets, self._parts, strict=True):

                def states_of(rows: Sequence[int], tokens: Tokens = tokens) -> Iterator[Tensor]:
                    chosen = [tokens[row] for row in rows]  # of ascending length, as `collate` keeps them
                    for batch in collate(chosen, pad_token_id=0, tokens_per_batch=tokens_per_forward):
                        with fabric.autocast(), torch.inference_mode():
                            states = _states(teacher, batch, fabric)
                        progress.advance(int(batch["attention_mask"].sum()))
                        yield states

                part.write(width, dtype, states_of)
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


@dataclass(frozen=True)
class TeacherSupply:
    """How a run gets its teacher's signal, which is the same either way, to rounding.

    Args:
        mode: `live` runs the teacher on every batch. `cached` writes its states once and reads them; a run
            whose objective has no teacher is then compared with it at validations.
            `auto` does so in a multirun and in a run that goes over its data twice or more, as long as they
            take no more than half of the free disk space, and reads them wherever they are written already;
            it is `live` where the student's own text is trained on, which has no states on disk. `cached`
            runs the teacher on that text then, and reads the states of the data.
        multirun: whether the run is one of several.
        cache_dir: where the states are kept.
        tokens_per_forward: tokens, with padding, that go through the teacher at once while they are written.

    Raises:
        InputError: for an unknown mode, or a number that is not positive.
    """

    mode: str = "live"
    multirun: bool = False
    cache_dir: str = "outputs/cache"
    tokens_per_forward: int = 2048

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"teacher.mode={self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        if self.tokens_per_forward < 1:
            raise InputError(f"teacher.tokens_per_forward={self.tokens_per_forward} must be at least 1")

    def teacher(
        self,
        source: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        sets: Sequence[Tokens],
        fabric: L.Fabric,
        precision: str,
        passes: float,
        with_student_text: bool = False,
    ) -> Teacher:
        """The teacher, live or from its cache, which is written first where need be.

        Args:
            source: the teacher's weights; not loaded where its cache is whole.
            tokenizer: of the data.
            sets: the sequences that it is asked about.
            fabric: device and precision that the cache is written with.
            precision: its name.
            passes: how often the run goes over its training data.
            with_student_text: whether it is asked about rows besides those of the sets.

        Raises:
            InputError: if the teacher cannot be loaded, or with `cached`, its states cannot be kept: random
                weights, a head that cannot be split off, or too little disk space.
        """
        if with_student_text and self.mode == "cached":
            stored = self.teacher(source, tokenizer, sets, fabric, precision, passes)
            assert isinstance(stored, CachedTeacher)
            return PartlyCachedTeacher(LiveTeacher(source.load(tokenizer)), stored)
        if with_student_text or self.mode == "live":
            return LiveTeacher(source.load(tokenizer))
        fingerprint = source.fingerprint()
        if fingerprint is None:
            if self.mode == "cached":
                raise InputError(
                    "teacher=cached: a teacher of random weights is another one in each run; "
                    "use teacher=live, or model.teacher.path= or model.teacher.sft"
                )
            return LiveTeacher(source.load(tokenizer))
        cache = TeacherCache(Path(self.cache_dir), fingerprint, precision, sets)
        found = cache.open()
        if found is not None:
            announce(f"The teacher's states are complete in {cache.folder} ({found.size})")
            return found
        if self.mode == "auto" and not (self.multirun or passes >= 2):
            return LiveTeacher(source.load(tokenizer))
        with cache.lock():
            found = cache.open()  # another run may have written it by now
            if found is not None:
                return found
            live = LiveTeacher(source.load(tokenizer))
            try:
                cache.write(
                    live, fabric, self.tokens_per_forward, share=1.0 if self.mode == "cached" else 0.5
                )
            except InputError as error:
                if self.mode == "cached":
                    raise
                announce(f"The teacher runs live: {error}")
                return live
            found = cache.open()
            if found is None:
                raise OSError(f"the teacher's states in {cache.folder} changed while they were written")
            return found


def _states(teacher: LiveTeacher, batch: MicroBatch, fabric: L.Fabric) -> Tensor:
    """The states at the counted positions of a batch."""
    batch = {name: value.to(fabric.device) for name, value in batch.items()}
    return teacher.hidden(batch, counted_positions(batch))
