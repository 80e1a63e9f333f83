"""The teacher of a run: run live on every batch, or read from the teacher cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from transformers import PreTrainedTokenizerBase

from amid.console import announce
from amid.data.tokens import Tokens
from amid.distributed import ranks
from amid.errors import InputError
from amid.models.source import ModelSource
from amid.settings import check_arguments, nodes
from amid.settings.together import check_supply
from amid.teacher.cache import TeacherCache
from amid.teacher.signals import CachedTeacher, LiveTeacher, PartlyCachedTeacher, Teacher
from amid.teacher.state_codes import EXACT


@dataclass(frozen=True)
class TeacherSupply:
    """The teacher of a run, live or from the teacher cache. Its signal is the same, up to rounding.

    Args:
        mode: `live` runs the teacher on every batch. `cached` writes the teacher's states once and reads
            them. If the objective has no teacher, `cached` still compares the student with it at validations.
            `auto` writes the cache in a multirun and in a run of two or more epochs, if the states take at
            most half of the free disk space. It reads a complete cache in any run. It is `live` if the run
            trains on the student's own text, which has no states on disk. `cached` then runs the teacher on
            the student's text, and reads the states of the data.
        multirun: whether the run is one of several.
        cache_dir: the folder of the teacher cache.
        tokens_per_forward: tokens, with padding, that go through the teacher at once while they are written.
        states: how `cached` writes the states. `exact` keeps them as they are. `int8` writes them as 8-bit
            integers with a scale for each token: about half of the bytes of bfloat16 states and a quarter
            of those of float32. It is lossy: amid measures the KL divergence to the exact states.
        offload: whether a live teacher's weights wait in the CPU's memory while the student answers, for
            on-policy text and at validations. The numbers are the same.

    Raises:
        InputError: for an unknown mode, a number that is not positive, or lossy states that `mode` may not
            write.
    """

    mode: str = "live"
    multirun: bool = False
    cache_dir: str = "outputs/cache"
    tokens_per_forward: int = 2048
    states: str = EXACT
    offload: bool = False

    def __post_init__(self) -> None:
        check_arguments("teacher.", nodes.TeacherSupply, vars(self))
        check_supply(vars(self))

    @property
    def lossy(self) -> bool:
        """Whether stored states are not the exact ones."""
        return self.states != EXACT

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
        """Returns the teacher, live or from its cache; writes the cache first if need be.

        Args:
            source: the teacher's weights; they are not loaded if its cache is whole.
            tokenizer: the tokenizer of the data.
            sets: the sequences that the run needs the teacher's states of.
            fabric: device and precision that the cache is written with.
            precision: the name of that precision.
            passes: how often the run goes over its training data.
            with_student_text: whether the run also needs the teacher's states of rows outside the sets.

        Raises:
            InputError: if the teacher cannot be loaded, or with `cached`, its states cannot be kept: random
                weights, a head that cannot be split off, or too little disk space.
        """
        if with_student_text and self.mode == "cached":
            stored = self.teacher(source, tokenizer, sets, fabric, precision, passes)
            assert isinstance(stored, CachedTeacher)
            return PartlyCachedTeacher(self._live(source, tokenizer), stored)
        if with_student_text or self.mode == "live":
            return self._live(source, tokenizer)
        fingerprint = source.fingerprint()
        if fingerprint is None:
            if self.mode == "cached":
                raise InputError(
                    "teacher=cached: a teacher of random weights is another one in each run; "
                    "use teacher=live, or model.teacher.path= or model.teacher.sft"
                )
            return self._live(source, tokenizer)
        cache = TeacherCache(Path(self.cache_dir), fingerprint, precision, sets, self.states)
        if ranks.from_first(lambda: cache.open() is not None):
            found = cache.opened()
            announce(f"The teacher's states are complete in {cache.folder} ({found.size})")
            return found
        if self.mode == "auto" and not (self.multirun or passes >= 2):
            return self._live(source, tokenizer)
        return self._written(cache, source, tokenizer, fabric)

    def _live(self, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> LiveTeacher:
        return LiveTeacher(source.load(tokenizer), self.offload)

    def _written(
        self, cache: TeacherCache, source: ModelSource, tokenizer: PreTrainedTokenizerBase, fabric: L.Fabric
    ) -> Teacher:
        """Writes `cache` and returns its teacher; with `auto`, the live teacher if the states do not fit."""
        with ranks.first_in(cache.lock):
            if ranks.from_first(lambda: cache.open() is not None):  # another run may have written it by now
                return cache.opened()
            live = self._live(source, tokenizer)
            try:
                cache.write(
                    live, fabric, self.tokens_per_forward, share=1.0 if self.mode == "cached" else 0.5
                )
            except InputError as error:
                if self.mode == "cached":
                    raise
                announce(f"The teacher runs live: {error}")
                return live
            found = cache.opened()
            if found.lost:
                announce(f"The teacher's states are {found.size}")
            return found
