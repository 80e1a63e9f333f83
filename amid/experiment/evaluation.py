"""The evaluation of a model: its answers to the evaluation sets, and their scores."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid.config.ladders import Rung, rungs_of
from amid.console import announce
from amid.data.examples import Example
from amid.data.prompts import Encoder
from amid.distributed import ranks
from amid.errors import InputError
from amid.files import checksum, read_made, write_json
from amid.generation.sampling import Sampling
from amid.measures import OF_ANSWERS
from amid.metrics import Metric, set_score
from amid.results import Score
from amid.scoring.answers import (
    MANIFEST,
    PER_PROMPT,
    Answer,
    Answered,
    MadeFrom,
    answers_file,
    read_answers,
    write_answers,
    write_per_prompt,
)
from amid.scoring.scores import (
    diversity_per_prompt,
    metric_values,
    passes,
    per_prompt,
    score_answers,
    self_bleus_by_seed,
    tokenize_for_answers,
    unread_by,
    unread_in_words,
)
from amid.tracking.progress import Progress
from amid.tracking.status import record_status

Ladders = dict[str, dict[float, dict[str, dict[str, Score]]]]
"""Scores by ladder, rung, set and metric."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model's answers."""

    scores: dict[str, dict[str, Score]]
    """Set -> metric -> score over the seeds (`score_answers`)."""
    ladders: Ladders
    """See `amid.results.RunResult.ladders`."""
    seconds: float
    """Seconds that answering and scoring took, also before an interruption of the answering."""


@dataclass(frozen=True)
class ValidationScore:
    """The score of a student's answers to the prompts of a validation: one each, with the first seed.

    Args:
        name: the name of the score, such as `rouge_l`.
        metric: scores the answers against the references.
        prompts: token ids of each prompt.
        references: acceptable answers to each prompt.
        sampling: draws the answers.
        group_size: how many prompts are answered together (`Sampling.token_ids`).
    """

    name: str
    metric: Metric
    prompts: Sequence[Sequence[int]]
    references: Sequence[Sequence[str]]
    sampling: Sampling
    group_size: int | None = None

    def __call__(self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
        """Draws the answers and scores them: 0 to 100."""
        seed = self.sampling.seeds[0]
        answers = self.sampling.answers(
            model=student,
            tokenizer=tokenizer,
            prompts=self.prompts,
            seed=seed,
            samples=1,
            group_size=self.group_size,
        )
        return set_score(self.metric, [answer[0].text for answer in answers], self.references).value


def evaluate_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    encoder: Encoder,
    sampling: Sampling,
    metrics: Mapping[str, Metric],
    pass_at: Sequence[int],
    directory: Path,
    made_from: Mapping[str, Any],
    precision: Callable[[], AbstractContextManager[None]],
) -> Evaluation:
    """Answers every set with every seed, at every rung of the ladders, keeps the answers, and scores them.

    The ranks of a run share the prompts out; the first rank writes and scores the answers. The files are the
    same byte for byte on any number of ranks with the same weights.

    The answers are written to `directory/SET-SEED.jsonl` (`write_answers`), the mean scores of each
    prompt to `directory/per_prompt.json`. Each further rung has a folder of the same kind in `directory`,
    such as `temperature-0.4`. Sets that were answered before an interruption are read.

    Args:
        model: the student.
        tokenizer: the student's tokenizer.
        sets: the prompts and their acceptable answers, by the name of the set.
        encoder: turns the prompts into token ids.
        sampling: draws the answers.
        metrics: score the answers against the references.
        pass_at: each k of pass@k.
        directory: the folder of the answers; it is made again if its answers were not `made_from` this.
        made_from: JSON values of the run's configuration and of its student.
        precision: makes the context that the model is run in.
    """
    started = time.perf_counter()
    folders, waiting = ranks.from_first(lambda: _folders(directory, made_from, sampling, sets))
    own = folders[None].known
    before = own.seconds
    unanswered = {name: [encoder.prompt(example) for example in sets[name]] for name in waiting}
    if answered_before := [name for name in sets if name not in unanswered]:
        announce(f"Answered before, and kept: {', '.join(answered_before)}")
    total = sum(map(len, unanswered.values())) * len(folders) * len(sampling.seeds) * sampling.samples
    record_status(note="scoring")
    with precision(), Progress("answers", total, unit="answers") as progress:
        drawn = sampling.answers_to_sets(
            model=model, tokenizer=tokenizer, sets=unanswered, finished=progress.advance
        )
        for name, rung, seed, answers in drawn:
            own.seconds = before + time.perf_counter() - started
            if ranks.is_first():
                folders[rung].write(name, seed, _answered(sets[name], answers))
    own.seconds = 0.0  # all sets are answered
    to_score = list(sets), sampling.seeds, metrics, pass_at
    scores = ranks.from_first(lambda: {rung: _scored(of, *to_score) for rung, of in folders.items()})
    ladders: Ladders = {}
    for of in rungs_of(vars(sampling)):
        ladders.setdefault(of.ladder, {})[of.value] = scores.get(of, scores[None])
    return Evaluation(scores[None], ladders, before + time.perf_counter() - started)


def _folders(
    directory: Path, made_from: Mapping[str, Any], sampling: Sampling, sets: Iterable[str]
) -> tuple[dict[Rung | None, "_Folder"], list[str]]:
    """Returns the folder of each rung, and the sets without answers to every seed in all of them."""
    places = {rung: directory / (rung.folder if rung else "") for rung in (None, *sampling.rungs)}
    folders = {rung: _Folder(place, _kept(place, made_from)) for rung, place in places.items()}
    answered = {
        name: all(folder.answered(name, sampling.seeds) for folder in folders.values()) for name in sets
    }
    return folders, [name for name in sets if not answered[name]]


def _answered(examples: Sequence[Example], answers: Sequence[list[Answer]]) -> list[Answered]:
    return [
        Answered(example.instruction, example.input, example.outputs, row, example.fields)
        for example, row in zip(examples, answers, strict=True)
    ]


@dataclass(frozen=True)
class _Folder:
    """A folder of answers, and the record of what is in it."""

    path: Path
    known: MadeFrom

    def answered(self, dataset: str, seeds: Sequence[int]) -> bool:
        """Whether the answers to a set are there as they were written; announces a damaged file."""
        return all(self._whole(answers_file(self.path, dataset, seed)) for seed in seeds)

    def _whole(self, file: Path) -> bool:
        found = checksum(file)
        if found is not None and found != self.known.files.get(file.name):
            announce(f"{file} has changed since it was written: its set is answered again")
        return found is not None and found == self.known.files.get(file.name)

    def write(self, dataset: str, seed: int, answered: Sequence[Answered]) -> None:
        """Writes and records a file of answers."""
        file = answers_file(self.path, dataset, seed)
        write_answers(file, answered, seed)
        self.note(file)

    def note(self, file: Path) -> None:
        """Records the checksum of a file in the folder."""
        self.known.files[file.name] = str(checksum(file))
        write_json(self.path / MANIFEST, self.known.model_dump())


def _scored(
    folder: _Folder,
    sets: Sequence[str],
    seeds: Sequence[int],
    metrics: Mapping[str, Metric],
    pass_at: Sequence[int],
) -> dict[str, dict[str, Score]]:
    """Scores the answers to each set in a folder; writes the scores of each prompt."""
    by_seed = {name: [read_answers(answers_file(folder.path, name, seed)) for seed in seeds] for name in sets}
    given = {name: metric_values(metrics, answered) for name, answered in by_seed.items()}
    words = tokenize_for_answers(metrics)
    alike = {name: self_bleus_by_seed(answered, words) for name, answered in by_seed.items()}
    of_prompts = {
        name: {
            metric: values
            for metric, scores in given[name].items()
            if (values := per_prompt(scores, answered)) is not None
        }
        | diversity_per_prompt(answered, alike[name], words)
        | passes(given[name], answered, pass_at)
        for name, answered in by_seed.items()
    }
    not_read = {name: unread_by(metrics, answered, words) for name, answered in by_seed.items()}
    firsts = {name: answered[0] for name, answered in by_seed.items()}
    write_per_prompt(folder.path, of_prompts, firsts, not_read)
    folder.note(folder.path / PER_PROMPT)
    return {
        name: score_answers(of, metrics, words, pass_at, given=given[name], alike=alike[name])
        for name, of in by_seed.items()
    }


def _kept(directory: Path, made_from: Mapping[str, Any]) -> MadeFrom:
    """Returns the record of the answers in a folder; makes the folder again if their origin is another."""
    known = read_made(directory / MANIFEST, MadeFrom)
    if known is None or known.made_from != made_from:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        known = MadeFrom(made_from=dict(made_from), seconds=0.0)
        write_json(directory / MANIFEST, known.model_dump())
    return known


def check_metrics(metrics: Mapping[str, Metric], sets: Mapping[str, Sequence[Example]]) -> None:
    """Scores the references themselves, so that data that a metric cannot score are known beforehand.

    Raises:
        InputError: naming the metric and the set, for a metric that refuses it, or a name of a score that
            every run has.
    """
    for name, metric in metrics.items():
        if name in OF_ANSWERS:
            raise InputError(f"data.metrics.{name} has the name of a score that every run has; rename it")
        for of, examples in sets.items():
            references = [list(example.outputs) for example in examples]
            try:
                set_score(metric, [outputs[0] for outputs in references], references)
            except (TypeError, ValueError) as error:
                raise InputError(f"data.metrics.{name} cannot score {of}: {error}") from error


def announce_unread(metrics: Mapping[str, Metric], sets: Mapping[str, Sequence[Example]]) -> None:
    """Says in a line which scores cannot read the references, and which share of their characters."""
    references = {
        of: [[Answered(one.instruction, one.input, one.outputs, []) for one in examples]]
        for of, examples in sets.items()
    }
    shares = {of: unread_by(metrics, by_seed) for of, by_seed in references.items()}
    if any(shares.values()):
        named = next(name for by in shares.values() for name in by)
        announce(
            f"{unread_in_words(shares)}; for another tokenisation: data.metrics.{named}.tokenize=intl, "
            "or zh or char for text without spaces between words"
        )
