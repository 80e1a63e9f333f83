"""The teacher's answers in place of the data's responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedTokenizerBase

from amid.console import announce
from amid.data.tokens import Tokens
from amid.distributed import ranks
from amid.errors import InputError
from amid.files import only_writer
from amid.generation.sampling import Sampling
from amid.models.source import ModelSource
from amid.settings import check_arguments, nodes
from amid.text.answer_store import AnswerFolder
from amid.text.base import Text, seed_of


class TeacherText(Text):
    """The teacher's answers to the training prompts, one to each: sequence-level distillation.

    Kim & Rush (arXiv 1606.07947) train on the teacher's mode. Here greedy decoding approximates the mode.

    Args:
        max_new_tokens: the most tokens of an answer; a cut answer has no EOS.
        temperature: 0 for greedy decoding.
        top_p: in (0, 1]; 1 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch_size: answers drawn at once, at most. Changes memory and speed, not the text.
        seed: the seed of the samples, if the temperature is above 0.

    Raises:
        InputError: for a value outside its range.
    """

    from_teacher = True

    def __init__(
        self,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        check_arguments("text.", nodes.TeacherText, locals())
        self.sampling = Sampling(
            max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, batch_size=batch_size
        )
        self.seed = seed

    def training_set(
        self,
        tokens: Tokens,
        source: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        fabric: L.Fabric,
        precision: str,
        cache_dir: Path,
    ) -> Tokens:
        """Returns the prompts of `tokens`, in their order, with the teacher's answers.

        The answers are written once, in the folder of `AnswerFolder.of_teacher`, and read by every later run.
        A killed writer goes on from its last file. If several runs need the answers at once, one run writes
        them and the others wait.

        Args:
            tokens: the training set.
            source: the teacher's weights; they are not loaded if its text is whole.
            tokenizer: the tokenizer of the data.
            fabric: device and precision that the answers are drawn with.
            precision: the name of that precision.
            cache_dir: the folder in which the folder of the answers is made.

        Raises:
            InputError: if the teacher cannot be loaded, or has random weights.
        """
        teacher = source.fingerprint()
        if teacher is None:
            raise InputError(
                "text=teacher: a teacher of random weights is another one in each run; give "
                "model.teacher.path= or model.teacher.sft, or use text=data"
            )
        folder = AnswerFolder.of_teacher(
            cache_dir, teacher, precision, tokens, tokenizer, self.sampling, self.seed
        )
        found = ranks.from_first(folder.open)
        if found is not None:
            announce(f"The teacher's text is complete in {folder.folder} ({len(found):,} answers)")
            return found
        with ranks.first_in(lambda: only_writer(folder.folder, "the teacher's text")):
            found = ranks.from_first(folder.open)  # another run may have written it by now
            if found is not None:
                return found
            announce(f"Writing the teacher's answers to {len(tokens):,} prompts in {folder.folder}")
            model: Any = source.load(tokenizer).to(fabric.device)  # type: ignore[arg-type]

            def answer(some: Sequence[Sequence[int]], part: int) -> list[list[int]]:
                with fabric.autocast():
                    drawn = self.sampling.token_ids(
                        model, tokenizer, some, seed_of(self.seed, part), vocabulary=len(tokenizer)
                    )
                return [ids for (ids,) in drawn]

            folder.write(answer)
            found = ranks.from_first(folder.open)
            if found is None:
                raise OSError(f"the teacher's text in {folder.folder} changed while it was written")
            return found
