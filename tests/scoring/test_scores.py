import itertools
import json
import math
import tempfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import sacrebleu
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_answers import REFERENCES, answered, of
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from amid.config.folders import CONF
from amid.data.examples import Example
from amid.errors import InputError
from amid.experiment.evaluation import announce_unread, evaluate_sets
from amid.measures import OF_ANSWERS, SCORES
from amid.metrics import bleu, chrf, exact_answer, exact_match, rouge_l, set_score
from amid.results import Score
from amid.scoring.answers import (
    PER_PROMPT,
    UNREAD,
    Answer,
    Answered,
    answers_file,
    answers_files,
    read_answers,
    write_answers,
    write_per_prompt,
)
from amid.scoring.scores import (
    metric_values,
    passes,
    per_prompt,
    resampled,
    score_answers,
    tokenize_for_answers,
    unread_by,
    unread_in_words,
)
from amid.scoring.systems import KNOWN

SETS = {"bleu": bleu, "chrf": chrf}


def test_what_is_written_is_read_again(tmp_path):
    rows = answered("the\u2028cat\x85", "a dog – barked", "", tokens=3, ended=True, log_probs=[-0.5, -1.25])
    fields = {"category": "open_qa", "level": 3, "seed": "of the data", "answers": "no"}
    rows[0] = replace(rows[0], fields=fields)
    write_answers(tmp_path / "open-10.jsonl", rows, seed=10)
    read = read_answers(tmp_path / "open-10.jsonl")
    assert [row.answers for row in read] == [row.answers for row in rows]
    assert [(row.instruction, row.references) for row in read] == [
        (r.instruction, r.references) for r in rows
    ]
    assert read[0].answers[0].log_probs == [-0.5, -1.25]
    assert [row.fields for row in read] == [{"category": "open_qa", "level": 3}, {}, {}]
    assert [path.name for path in tmp_path.iterdir()] == ["open-10.jsonl"]


def test_the_scores_are_those_of_each_metric():
    texts = ["the cat sat on the cat sat on the cat sat on the mat", "a dog barked", "no"]
    rows = [answered(*texts, tokens=4, ended=True, log_probs=[-1.0, -2.0])]
    scores = score_answers(rows, {"rouge_l": rouge_l})
    assert scores["length"].mean == 4
    assert scores["eos_share"].mean == 100
    assert scores["log_prob"].mean == -1.5
    assert scores["overlong"].mean == pytest.approx(100 / 3)
    assert scores["repetition"].mean == pytest.approx(100 * (1 - 5 / 11) / 3)
    assert scores["rouge_l"].mean == pytest.approx(sum(rouge_l(texts, REFERENCES)) / 3)


def test_self_bleu_says_among_how_many_answers():
    rows = answered("a", "b", "c")
    assert score_answers([rows], {})["corpus_self_bleu"].signature == "among 3 answers"
    assert score_answers([rows, rows], {})["self_bleu"].signature == "among 2 answers to a prompt"


def test_what_data_sets_are_scored_by_is_known_to_all_that_tell_of_scores():
    named = [yaml.safe_load(file.read_text()) for file in (CONF / "data" / "metrics").glob("*.yaml")]
    assert {name for names in named for name in names} == KNOWN.keys() == SCORES.keys() - set(OF_ANSWERS)
    assert KNOWN["rouge_2"](["a b c"], [["a b d"]]) == [50]


def test_what_is_not_known_of_the_answers_is_left_out():
    scores = score_answers([answered("a", "b", "c")], {})
    assert not {"length", "eos_share", "log_prob"} & scores.keys()
    assert scores["corpus_self_bleu"].mean == 0


def test_a_prompt_has_the_mean_over_all_its_answers():
    one, other = answered("the cat sat on the mat", "a dog barked", "yes"), answered("", "", "")

    def means(metric, *by_seed):
        return per_prompt(metric_values({"m": metric}, by_seed)["m"], by_seed)

    assert means(rouge_l, one) == [100, 100, 100]
    assert means(rouge_l, one, other) == [50, 50, 50]
    assert means(bleu, one) is None


def test_pass_at_k_counts_the_answers_of_all_seeds():
    """The first prompt has 3 right answers of 4, the second 1 of 4; 41 and no number are wrong."""
    references = [["#### 42"], ["#### 7"]]
    one = [replace(row, answers=row.answers * 2) for row in of(references, ["It is 42.", "41"])]
    other = [
        replace(row, answers=[Answer(text) for text in texts])
        for row, texts in zip(one, (["42", "none"], ["so 7", "none"]), strict=True)
    ]
    metrics = {"exact_match": exact_match, "exact_answer": exact_answer}
    by_seed = [one, other]
    assert passes(metric_values(metrics, by_seed), by_seed, [1, 2]) == {
        "pass_1": [75, 25],
        "pass_2": [100, 50],
    }
    scores = score_answers(by_seed, metrics, pass_at=[2])
    assert scores["pass_2"] == Score(75, None, [75], "right by exact_answer")
    assert scores["unparsable"].values == [0, 50]
    assert "unparsable" not in score_answers(by_seed, {"exact_match": exact_match})
    with pytest.raises(ValueError, match="k=5 must be from 1 to the 4 answers to a prompt"):
        score_answers(by_seed, metrics, pass_at=[5])
    with pytest.raises(ValueError, match=r"pass@k needs one of exact_answer, exact_match, got rouge_l"):
        score_answers(by_seed, {"rouge_l": rouge_l}, pass_at=[1])


def test_a_draw_of_prompts_has_the_score_of_their_answers():
    """The mean over two seeds, of which the second drew two answers to each prompt."""
    one, other = answered("the cat sat on a mat", "a dog", "yes"), answered("the cat", "a dog barked", "no")
    twice = [replace(a, answers=a.answers + b.answers) for a, b in zip(one, other, strict=True)]
    draws = numpy.array([[1, 1, 1], [0, 3, 1]])
    for metric in SETS.values():
        drawn = [[[rows[i] for i in draw] for rows in (one, twice)] for draw in ([0, 1, 2], [1, 1, 1, 2])]
        expected = [score_answers(rows, {"m": metric})["m"].mean for rows in drawn]
        given = metric_values({"m": metric}, [one, twice])["m"]
        assert resampled(given, [one, twice])(draws) == pytest.approx(expected)
    assert resampled(metric_values({"m": rouge_l}, [one])["m"], [one]) is None


def test_a_run_computes_each_metric_once_an_answer(tmp_path):
    """Two seeds with two answers to each of three prompts: all scores of these are made from one call."""
    seen = Counter()

    def counted(name, metric):
        def score(texts, references):
            seen[name] += len(texts)
            return metric(texts, references)

        return score

    texts = {1: ["the cat", "a dog", "yes", "no", "on the mat", "yes"], 2: ["the mat sat", "", "a dog"] * 2}
    drawn = {seed: [[Answer(text) for text in of[i::3]] for i in range(3)] for seed, of in texts.items()}
    sampling = SimpleNamespace(
        seeds=[1, 2],
        samples=2,
        rungs=[],
        answers_to_sets=lambda **_: [("mine", None, seed, answers) for seed, answers in drawn.items()],
    )
    sets = {"mine": [Example(f"say {i}", "", tuple(outputs)) for i, outputs in enumerate(REFERENCES)]}
    metrics = {name: counted(name, metric) for name, metric in {"rouge_l": rouge_l, **SETS}.items()}
    encoder = SimpleNamespace(prompt=lambda _: [0])
    metrics["exact_match"] = counted("exact_match", exact_match)
    scores = evaluate_sets(
        None, None, sets, encoder, sampling, metrics, [1, 2], tmp_path, {}, nullcontext
    ).scores["mine"]
    assert seen == dict.fromkeys(metrics, 12)

    in_turn = [[a.text for row in drawn[seed] for a in row] for seed in (1, 2)]
    targets = [outputs for outputs in REFERENCES for _ in range(2)]
    of_answers = [rouge_l(each, targets) for each in in_turn]
    assert scores["rouge_l"].values == [sum(each) / 6 for each in of_answers]
    for name, metric in SETS.items():
        assert scores[name].values == [metric(each, targets).value for each in in_turn]
    of_prompts = json.loads((tmp_path / PER_PROMPT).read_text())["mine"]
    expected = [sum(each[2 * i] + each[2 * i + 1] for each in of_answers) / 4 for i in range(3)]
    assert of_prompts["rouge_l"] == [round(value, 4) for value in expected]
    assert not SETS.keys() & of_prompts.keys()
    assert of_prompts["pass_1"] == of_prompts["exact_match"] == [0, 0, 50], "two answers of four are yes"
    assert of_prompts["pass_2"] == [0, 0, 83.3333]
    assert scores["pass_2"].signature == "right by exact_match"
    assert scores["pass_2"].values == pytest.approx([100 * 5 / 18])


def test_marks_and_nulls_of_other_programs_are_no_text(tmp_path):
    file = tmp_path / "answers.jsonl"
    line = '{"references": "a", "prediction": "b", "input": null}'
    file.write_bytes(f"\ufeff{line}\r\n\ufeff{line}\r\n".encode())
    assert read_answers(file) == [Answered("", "", ("a",), [Answer("b")])] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 1, is no prompt with answers"),
        ("[1]", "no JSON object"),
        ('{"references": ["a"]}', "no answers or answer or prediction"),
        ('{"answers": ["a"]}', "no references or reference or output"),
        ('{"references": [], "answers": ["a"]}', "references must be"),
        ('{"references": {"text": ["a"]}, "answers": ["a"]}', "got \"{'text': ['a']}\""),
        ('{"reference": 42, "answers": ["a"]}', "references must be a string or a list of them"),
        ('{"references": ["a"], "answers": [1]}', "an answer must be"),
        ('{"references": ["a"], "answers": [{"text": "b", "tokens": "3"}]}', "tokens must be a number"),
        ('{"references": ["a"], "answers": [{"text": "b", "ended": "yes"}]}', "ended must be true or false"),
        ('{"references": ["a"], "answers": [{"text": "b", "log_probs": -3.2}]}', "log_probs must be a list"),
        ("", "is empty"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_where(tmp_path, line, message):
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"answers.jsonl") as raised:
        read_answers(tmp_path / "answers.jsonl")
    assert message in str(raised.value)
    assert 'JSON Lines, an object a line, such as {"references"' in str(raised.value)


@pytest.mark.parametrize(
    "name", ["selfinst", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dolly", "vicuna"))]
)
def test_real_sets_are_scored_as_by_rouge_score_and_sacrebleu(shared, name):
    """Word for word copies, other prompts' references, empty and non-English answers: of 200 rows, chrF and
    ROUGE-L of 30 and Self-BLEU of 20, which take the others long.
    """
    lines = (shared / "data" / name / "valid.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    outputs = [json.loads(line)["output"] for line in lines]
    references = [[out] if isinstance(out, str) else out for out in outputs]
    copies = [refs[0] for refs in references]
    others = [*copies[1:], copies[0]]
    mixed = [("", "Das weiß ich nicht.", "我不知道", text)[i % 4] for i, text in enumerate(others)]
    for texts in (copies, others, mixed):
        ours = [set_score(KNOWN[metric], texts, references).value for metric in ("rouge_1", "rouge_2")]
        assert ours == pytest.approx(by_rouge_score(["rouge1", "rouge2"], references, texts), abs=1e-9)
        streams = list(itertools.zip_longest(*references))
        assert bleu(texts, references).value == sacrebleu.corpus_bleu(texts, streams).score

        few, refs = texts[:30], references[:30]
        ours = score_answers([of(refs, few)], {"rouge_l": rouge_l, "chrf": chrf})
        assert [ours["rouge_l"].mean] == pytest.approx(by_rouge_score(["rougeL"], refs, few), abs=1e-9)
        assert ours["chrf"].mean == sacrebleu.corpus_chrf(few, list(itertools.zip_longest(*refs))).score

        few = texts[:20]
        of_one = BLEU(effective_order=True)
        each = [of_one.sentence_score(text, few[:i] + few[i + 1 :]).score for i, text in enumerate(few)]
        found = score_answers([of(references[:20], few)], {})
        assert found["corpus_self_bleu"].mean == pytest.approx(math.fsum(each) / len(each), abs=1e-9)


def by_rouge_score(kinds, references, texts):
    """The mean over the texts of each kind of ROUGE, best over references."""
    scorer = RougeScorer(kinds, use_stemmer=True)
    each = [[scorer.score(ref, text) for ref in refs] for refs, text in zip(references, texts, strict=True)]
    return [
        100 * sum(max(found[kind].fmeasure for found in of_refs) for of_refs in each) / len(each)
        for kind in kinds
    ]


def test_files_of_answers_are_told_apart_by_set_and_come_by_seed(tmp_path):
    for dataset, seed in (("mine-2", 10), ("mine", 30), ("mine", 5)):
        write_answers(answers_file(tmp_path, dataset, seed), [], seed)
    found = answers_files(tmp_path)
    assert [(dataset, list(seeds)) for dataset, seeds in found.items()] == [
        ("mine", [5, 30]),
        ("mine-2", [10]),
    ]
    assert found["mine-2"][10] == tmp_path / "mine-2-10.jsonl"
    for other in ("other", "-1", "mine-05", "mine-٣", "mine-1_0"):
        (tmp_path / f"{other}.jsonl").touch()
        with pytest.raises(InputError, match="is not named SET-SEED"):
            answers_files(tmp_path)
        (tmp_path / f"{other}.jsonl").unlink()


@given(st.dictionaries(st.text("a1-._", min_size=1), st.sets(st.integers(0, 30), min_size=1), max_size=4))
def test_the_name_of_a_file_of_answers_tells_its_set_and_seed(sets):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        written = {of: {seed: answers_file(folder, of, seed) for seed in sets[of]} for of in sets}
        for file in (file for files in written.values() for file in files.values()):
            assert not file.exists(), "no other set and seed have this name"
            file.touch()
        assert answers_files(folder) == written


class TestUnread:
    CHINESE = of([["北京是首都"], ["yes"]], ["北京", "no"])

    def test_it_is_told_by_score_and_kept_beside_the_answers(self, tmp_path):
        metrics = {"rouge_l": rouge_l, "bleu": bleu, "chrf": chrf, "mine": partial(rouge_l, tokenize="zh")}
        told = unread_by(metrics, [self.CHINESE])
        assert told.keys() == {"rouge_l", "bleu", "self_bleu", "corpus_self_bleu", "distinct_1"} | {
            "distinct_2",
            "repetition",
        }
        assert told["rouge_l"] == pytest.approx(100 * 7 / 12)
        assert told["self_bleu"] == 50, "of the answers alone"
        assert unread_by(metrics, [self.CHINESE], "zh").keys() == {"rouge_l", "bleu"}
        write_per_prompt(tmp_path, {"open": {"rouge_l": [0.0, 0.0]}}, {"open": self.CHINESE}, {"open": told})
        assert json.loads((tmp_path / PER_PROMPT).read_text())["open"][UNREAD] == told
        assert unread_in_words({"open": {"rouge_l": 58.333}}) == (
            "ROUGE-L cannot read or split 58.3% of the characters of open"
        )

    def test_little_is_not_told_but_a_prompt_without_a_word_is(self):
        rows = of([["a naïve " + "x" * 200]], ["x"])
        assert unread_by({"rouge_l": rouge_l}, [rows]) == {}
        rows += of([["北"]], ["x" * 200])
        assert unread_by({"rouge_l": rouge_l}, [rows])["rouge_l"] < 1

    def test_another_tokenizer_is_in_the_signature_and_splits_the_answers_too(self):
        metrics = {"rouge_l": partial(rouge_l, tokenize="zh"), "exact_match": exact_match}
        assert tokenize_for_answers(metrics) == "zh"
        assert tokenize_for_answers({"rouge_l": rouge_l}) == "13a"
        scores = score_answers([self.CHINESE], metrics, "zh")
        assert scores["rouge_l"].signature == "tokenize=zh"
        assert scores["exact_match"].signature is None
        assert scores["corpus_self_bleu"].signature == "among 2 answers, tokenize=zh"

    def test_a_run_says_so_before_it_trains(self, capsys):
        sets = {"data.valid": [Example("", "", ("über",))], "open": [Example("", "", ("北京",))]}
        announce_unread({"rouge_l": rouge_l}, sets)
        assert capsys.readouterr().out == (
            "ROUGE-L cannot read or split 25% of the characters of data.valid, "
            "100% of the characters of open; for another tokenisation: data.metrics.rouge_l.tokenize=intl, "
            "or zh or char for text without spaces between words\n"
        )
        announce_unread({"rouge_l": partial(rouge_l, tokenize="char")}, sets)
        assert capsys.readouterr().out == ""
