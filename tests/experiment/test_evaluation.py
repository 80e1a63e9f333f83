"""Answers at several temperatures: their folders, their scores, and an interruption among them."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from families import PROMPTS, TOKENS, network

from amid.data.examples import Example
from amid.experiment.evaluation import evaluate_sets
from amid.generation.sampling import Sampling
from amid.metrics import rouge_l
from amid.scoring.answers import answers_files, read_answers
from amid.scoring.scores import score_answers

SAMPLING = Sampling(8, seeds=[5, 6], samples=2, temperatures=[0.3, 1.0, 2.0], top_ps=[0.5, 1.0])
SETS = {
    name: [Example(str(i), "", ("a reference", "another")) for i in numbers]
    for name, numbers in {"first": range(3), "second": range(3, 6)}.items()
}
ENCODER = SimpleNamespace(prompt=lambda example: PROMPTS[int(example.instruction)])
MODEL = network(eos_bias=3.0)


def evaluate(folder, sampling=SAMPLING):
    given = (MODEL, TOKENS, SETS, ENCODER, sampling, {"rouge_l": rouge_l}, [], folder, {"made": "of this"})
    return evaluate_sets(*given, nullcontext)


def contents(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".made_from.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "generations"
    return folder, evaluate(folder)


def test_each_rung_has_the_files_and_scores_of_its_temperature_alone(whole, tmp_path):
    folder, evaluation = whole
    assert sorted(path.name for path in folder.glob("*/")) == [
        "temperature-0.3",
        "temperature-2.0",
        "top_p-0.5",
    ]
    assert list(evaluation.ladders) == ["temperature", "top_p"]
    assert list(evaluation.ladders["temperature"]) == [0.3, 1.0, 2.0]
    assert evaluation.ladders["temperature"][1.0] == evaluation.scores == evaluation.ladders["top_p"][1.0]
    for ladder, value in (("temperature", 0.3), ("temperature", 2.0), ("top_p", 0.5)):
        alone = Sampling(8, seeds=[5, 6], samples=2, **{ladder: value})
        scores = evaluate(tmp_path / f"{ladder}{value}", alone).scores
        assert evaluation.ladders[ladder][value] == scores
        of_rung = contents(folder / f"{ladder}-{value}")
        assert of_rung == contents(tmp_path / f"{ladder}{value}")
    cold = answers_files(folder / "temperature-0.3")["first"].values()
    expected = score_answers([read_answers(file) for file in cold], {"rouge_l": rouge_l})
    assert evaluation.ladders["temperature"][0.3]["first"] == expected


@pytest.mark.parametrize("files", [1, 9, 11])
def test_an_interrupted_ladder_goes_on_with_the_sets_that_lack_answers(
    whole, tmp_path, monkeypatch, capsys, files
):
    """Each set has 8 files: 4 rungs of 2 seeds."""
    answers_to_sets, asked = Sampling.answers_to_sets, []

    def killed(self, model, tokenizer, sets, finished):
        asked.append(list(sets))
        for number, drawn in enumerate(answers_to_sets(self, model, tokenizer, sets, finished)):
            if number == files and len(asked) == 1:
                raise KeyboardInterrupt
            yield drawn

    monkeypatch.setattr(Sampling, "answers_to_sets", killed)
    folder = tmp_path / "generations"
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder)
    assert len(list(folder.rglob("*.jsonl"))) == files
    capsys.readouterr()
    again = evaluate(folder)
    assert asked[1] == (["second"] if files > 8 else ["first", "second"])
    assert ("Answered before, and kept: first" in capsys.readouterr().out) == (files > 8)
    assert contents(folder) == contents(whole[0])
    assert (again.scores, again.ladders) == (whole[1].scores, whole[1].ladders)


def test_a_damaged_rung_is_drawn_again(whole, tmp_path, capsys):
    folder = tmp_path / "generations"
    evaluate(folder)
    damaged = folder / "temperature-2.0" / "second-6.jsonl"
    damaged.write_text("{}\n")
    capsys.readouterr()
    evaluate(folder)
    out = capsys.readouterr().out
    assert f"{damaged} has changed since it was written: its set is answered again" in out
    assert "Answered before, and kept: first" in out
    assert contents(folder) == contents(whole[0])
