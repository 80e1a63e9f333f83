"""The scores of a model: its answers to the evaluation sets, and what they are worth."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid.data.examples import Example
from amid.data.prompts import Encoder
from amid.errors import InputError
from amid.generation import Answer, Sampling
from amid.metrics import Metric, self_bleu, self_bleu_per_prompt, set_score
from amid.results import OF_ANSWERS, Score


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

    The answers are written to `directory/SET-SEED.jsonl`, one prompt a line: `instruction`, `input`,
    `references`, `answers` (each with `text`, `tokens`, `ended`).

    `precision` makes the context that the model is run in.

    Returns:
        Set -> metric -> score over the seeds (`score_answers`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, Score]] = {}
    for name, examples in sets.items():
        prompts = [encoder.prompt(example) for example in examples]
        by_seed: list[list[list[Answer]]] = []
        for seed in sampling.seeds:
            with precision():
                answers = sampling.answers(model, tokenizer, prompts, seed)
            _write(directory / f"{name}-{seed}.jsonl", examples, answers)
            by_seed.append(answers)
        scores[name] = score_answers([list(example.outputs) for example in examples], by_seed, metrics)
    return scores


def score_answers(
    references: Sequence[Sequence[str]],
    by_seed: Sequence[Sequence[Sequence[Answer]]],
    metrics: Mapping[str, Metric],
) -> dict[str, Score]:
    """The scores of several answers to each prompt, drawn with several seeds.

    Args:
        references: acceptable answers to each prompt.
        by_seed: seed, prompt, sample -> answer.
        metrics: by name, what scores the answers against the references.

    Returns:
        Each of `metrics`, over all answers of a seed. eos_share (0..100), length (tokens): means over them.
        corpus_self_bleu (0..100): Self-BLEU over all answers of a seed. self_bleu (0..100): Self-BLEU over
        the answers to one prompt, mean over the prompts; with one sample a seed, over the answers of all
        seeds (and then a single value, without a deviation); left out where there is only one answer.
    """
    values: dict[str, list[float]] = {name: [] for name in (*metrics, *OF_ANSWERS)}
    signatures: dict[str, str | None] = {}
    for answers in by_seed:
        flat = [answer for row in answers for answer in row]
        texts = [answer.text for answer in flat]
        targets = [refs for refs, row in zip(references, answers, strict=True) for _ in row]
        for name, metric in metrics.items():
            score = set_score(metric, texts, targets)
            values[name].append(score.value)
            signatures[name] = score.signature
        values["eos_share"].append(100 * _mean([float(answer.ended) for answer in flat]))
        values["length"].append(_mean([float(answer.tokens) for answer in flat]))
        if len(texts) > 1:
            values["corpus_self_bleu"].append(self_bleu(texts))
        if len(answers[0]) > 1:
            values["self_bleu"].append(self_bleu_per_prompt([[a.text for a in row] for row in answers]))
    if not values["self_bleu"] and len(by_seed) > 1:
        together = [[a.text for row in rows for a in row] for rows in zip(*by_seed, strict=True)]
        values["self_bleu"].append(self_bleu_per_prompt(together))
    return {
        name: Score.over_seeds(per_seed, signatures.get(name))
        for name, per_seed in values.items()
        if per_seed
    }


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write(file: Path, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]) -> None:
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        for example, row in zip(examples, answers, strict=True):
            line = {
                "instruction": example.instruction,
                "input": example.input,
                "references": list(example.outputs),
                "answers": [{"text": a.text, "tokens": a.tokens, "ended": a.ended} for a in row],
            }
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(part, file)
