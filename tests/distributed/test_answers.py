"""Evaluation sets that several ranks answer have the files of one process, byte for byte."""

from contextlib import nullcontext
from types import SimpleNamespace

from families import TOKENS, network, prompts_of
from in_ranks import in_ranks

from amid.data.examples import Example
from amid.experiment.evaluation import evaluate_sets
from amid.generation.sampling import Sampling
from amid.metrics import rouge_l

PROMPTS = prompts_of([3 + 7 * i % 17 for i in range(28)])
NUMBERS = {"first": range(20), "second": range(17, 28)}
SAMPLING = Sampling(6, seeds=[5, 6], temperatures=[0.7, 1.0], batch_size=3)
ENCODER = SimpleNamespace(prompt=lambda example: PROMPTS[int(example.instruction)])


def evaluated(folder):
    """Writes the files of an evaluation; returns the log-probabilities of its answers, which files round."""
    model = network(eos_bias=3.0)
    sets = {name: [Example(str(i), "", ("a reference",)) for i in of] for name, of in NUMBERS.items()}
    given = (SAMPLING, {"rouge_l": rouge_l}, [], folder, {"made": "of this"}, nullcontext)
    evaluate_sets(model, TOKENS, sets, ENCODER, *given)
    prompts = {name: [PROMPTS[i] for i in of] for name, of in NUMBERS.items()}
    ended = []
    drawn = list(SAMPLING.answers_to_sets(model, TOKENS, prompts, ended.append))
    assert sum(ended) == sum(len(rows) for *_, rows in drawn)
    return [answer.log_probs for *_, rows in drawn for row in rows for answer in row]


def contents(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_three_ranks_write_the_bytes_of_one(tmp_path):
    alone = evaluated(tmp_path / "one")
    assert in_ranks(3, evaluated, tmp_path / "three") == [alone] * 3
    files = contents(tmp_path / "one")
    assert len(files) == 2 * (4 + 2)  # for each of two temperatures: four files of answers, and two records
    assert files == contents(tmp_path / "three")
