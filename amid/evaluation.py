"""The scores of a model: its answers to the evaluation sets, and what they are worth."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid.data.examples import Example
from amid.data.prompts import Encoder
from amid.errors import InputError
from amid.generation import Sampling
from amid.metrics import Metric, set_score
from amid.monitor import tell
from amid.progress import Progress
from amid.results import OF_ANSWERS, Score
from amid.scoring import (
    Answered,
    answers_file,
    applied,
    per_prompt,
    score_answers,
    set_scores,
    write_answers,
    write_per_prompt,
)


def evaluate_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    encoder: Encoder,
    sampling: Sampling,
    metrics: Mapping[str, Metric],
    directory: Path,
    precision: Callable[[], AbstractContextManager[None]],
) -> dict[str, dict[str, Score]]:
    """Answers every set with every seed, keeps the answers, and scores them.

    The answers are written to `directory/SET-SEED.jsonl` (`write_answers`), the mean scores of each
    prompt to `directory/per_prompt.json`.

    `precision` makes the context that the model is run in. How many answers are finished is shown.

    Returns:
        Set -> metric -> score over the seeds (`score_answers`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    prompts = {name: [encoder.prompt(example) for example in examples] for name, examples in sets.items()}
    by_seed: dict[str, list[list[Answered]]] = {name: [] for name in sets}
    total = sum(map(len, sets.values())) * len(sampling.seeds) * sampling.samples
    tell(note="scoring")
    with precision(), Progress("answers", total, unit="answers") as progress:
        for name, seed, answers in sampling.answers_to_sets(model, tokenizer, prompts, progress.advance):
            answered = [
                Answered(example.instruction, example.input, example.outputs, row, example.fields)
                for example, row in zip(sets[name], answers, strict=True)
            ]
            write_answers(answers_file(directory, name, seed), answered, seed)
            by_seed[name].append(answered)
    given = {name: applied(metrics, answered) for name, answered in by_seed.items()}
    of_prompts = {
        name: {
            metric: values
            for metric, scores in given[name].items()
            if (values := per_prompt(scores, answered)) is not None
        }
        for name, answered in by_seed.items()
    }
    write_per_prompt(directory, of_prompts, {name: answered[0] for name, answered in by_seed.items()})
    return {name: set_scores(given[name]) | score_answers(answered, {}) for name, answered in by_seed.items()}


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
            except ValueError as error:
                raise InputError(f"data.metrics.{name} cannot score {of}: {error}") from error
