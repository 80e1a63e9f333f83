import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from amid.metrics import exact_match, quality, rouge_l, rouge_n, tokenize_of, unread

ROOT = Path(__file__).parents[2]

CHINESE = "北京是中国的首都。"
GERMAN = "über die Brücke"

WORDS = ["the", "cat", "sat", "sitting", "sits", "on", "mats", "a-1", "2.5", "Ünder", "naïve", "猫", ",", "!"]
words = st.lists(st.sampled_from(WORDS), max_size=12)
texts = words.map(" ".join) | st.text(max_size=30)


def of_the_package(prediction: str, references: list[str], rouge: str = "rougeL") -> float:
    scorer = RougeScorer([rouge], use_stemmer=True)
    return 100 * float(scorer.score_multi(references, prediction)[rouge].fmeasure)


def test_a_case_by_hand():
    # LCS "the cat on the mat": 5 of 6 and 5 of 6 words.
    assert rouge_l(["the cat sat on the mat"], [["the cat lay on the mat"]]) == pytest.approx([100 * 5 / 6])
    # LCS 2, precision 2/2, recall 2/3.
    assert rouge_l(["a c"], [["a b c"]]) == pytest.approx([80.0])


def test_the_order_of_words_counts():
    assert rouge_l(["b a"], [["a b"]]) == [50.0]


def test_words_are_stemmed_and_lower_cased():
    assert rouge_l(["Running dogs"], [["run DOG"]]) == [100.0]
    assert rouge_l(["its"], [["it"]]) == [0.0]  # short words are not stemmed


def test_the_best_reference_counts():
    assert rouge_l(["a b", "x"], [["c", "a b", "a"], ["y", "z"]]) == [100.0, 0.0]


def test_copies_and_references_as_answers_score_100():
    answers = ["Paris is the capital.", "1 2 3", "It's 42 — naïve?"]
    assert rouge_l(answers, [[answer] for answer in answers]) == [100.0] * 3


@pytest.mark.parametrize("empty", ["", " \n", "猫が好き", "…!?"])
def test_text_without_words_scores_0(empty):
    assert rouge_l([empty, "a", empty], [["a"], [empty], [empty]]) == [0.0, 0.0, 0.0]


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), max_size=4))
def test_equal_to_rouge_score(pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    assert rouge_l(predictions, references) == [of_the_package(p, r) for p, r in pairs]


@given(
    st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), max_size=4),
    st.sampled_from([1, 2, 3]),
)
def test_n_grams_equal_to_rouge_score(pairs, n):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    assert rouge_n(predictions, references, n=n) == [of_the_package(p, r, f"rouge{n}") for p, r in pairs]


def test_n_grams_by_hand():
    # Of the bigrams "a b", "b a", "a b" and "a b", "b c" one is in common: 1/3 and 1/2.
    assert rouge_n(["a b a b"], [["a b c"]], n=2) == pytest.approx([100 * 2 / 5])
    assert rouge_n(["b a", ""], [["a b"], ["a"]], n=1) == [100.0, 0.0]
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        rouge_n(["a"], [["a"]], n=0)


@pytest.mark.slow
def test_equal_to_rouge_score_on_real_answers(real_texts):
    answers, others = real_texts[:80], real_texts[80:160]
    backwards = [" ".join(reversed(text.split())) for text in answers]
    for predictions in (answers, backwards, [text[:60] for text in answers]):
        references = [[other, backward] for other, backward in zip(others, backwards, strict=True)]
        references[0] = answers[:1]
        expected = [of_the_package(p, r) for p, r in zip(predictions, references, strict=True)]
        assert rouge_l(predictions, references) == expected


def test_several_processes_score_as_one(real_texts):
    predictions = [*real_texts[:30], "", "\ud800 lone surrogate", "猫 ünder"]
    references = [[other, "a cat"] for other in real_texts[60 : 60 + len(predictions)]]
    alone = rouge_l(predictions, references, processes=1)
    assert rouge_l(predictions, references, processes=3) == alone
    assert rouge_l(predictions[:2], references[:2], processes=3) == alone[:2]  # more than there is to do


def test_processes_are_for_large_inputs(monkeypatch):
    def no_other(*_, **__):
        raise AssertionError("started a process")

    monkeypatch.setattr(subprocess, "Popen", no_other)
    rouge_l(["a b"] * 1000, [["a"]] * 1000)
    monkeypatch.setattr(quality, "CHARACTERS_OF_A_PROCESS", 100)
    monkeypatch.setattr(quality, "_cpus", lambda: 2)
    rouge_l(["a b"] * 1000, [["a"]] * 1000, processes=1)
    with pytest.raises(AssertionError, match="started a process"):
        rouge_l(["a b"] * 1000, [["a"]] * 1000)


def test_a_script_without_a_main_guard_is_not_run_again_and_torch_not_loaded(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from amid.metrics import rouge_l\n"
        "print(rouge_l(['a b', 'a'], [['a b'], ['b']], processes=2))\n"
    )
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == ("started\n[100.0, 0.0]\n", "")


def test_a_process_that_fails_is_named(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no library >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=r"(?s)status 1: .*no library.*processes=1"):
        rouge_l(["a", "b"], [["a"], ["b"]], processes=2)
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        rouge_l(["a"], [["a"]], processes=0)


def test_long_answers_cross_the_machine_word():
    prediction = " ".join(str(i) for i in range(200))
    reference = " ".join(str(i) for i in range(0, 200, 3))
    assert rouge_l([prediction], [[reference]]) == [of_the_package(prediction, [reference])]


def test_exact_match_by_hand():
    predictions = [" 42\n", "42", "Yes", "", "a  b"]
    references = [["42"], ["41", "42 "], ["yes"], [" "], ["a b"]]
    assert exact_match(predictions, references) == [100.0, 100.0, 0.0, 100.0, 0.0]


def test_nothing_to_score():
    assert rouge_l([], []) == exact_match([], []) == []


@pytest.mark.parametrize("metric", [rouge_l, exact_match])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "got 1 and 2"),
        (["a"], [[]], r"references\[0\] is empty"),
        (["a"], ["a"], r"references\[0\] must be a list of strings, got the string 'a'"),
        ("a", [["a"]], "predictions must be a list of strings"),
    ],
)
def test_mistakes_are_named(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric(predictions, references)


class Sacrebleu:
    """A tokenizer for rouge_score from one of sacrebleu."""

    def __init__(self, name):
        self._tokenize = BLEU(tokenize=name).tokenizer

    def tokenize(self, text):
        return self._tokenize(text.lower().rstrip()).split()


@pytest.mark.parametrize("tokenize", ["intl", "zh", "char", "13a"])
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), max_size=3))
def test_equal_to_rouge_score_with_another_tokenizer(tokenize, pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Sacrebleu(tokenize))

    def theirs(kind):
        return [100 * float(scorer.score_multi(r, p)[kind].fmeasure) for p, r in pairs]

    assert rouge_l(predictions, references, tokenize=tokenize) == theirs("rougeL")
    assert rouge_n(predictions, references, n=2, tokenize=tokenize) == theirs("rouge2")


def test_text_of_any_script_can_be_read():
    assert rouge_l([CHINESE], [[CHINESE]]) == [0.0], "as published"
    assert rouge_l([CHINESE], [[CHINESE]], tokenize="zh") == [100.0]
    assert rouge_l(["北京"], [["北京是"]], tokenize="char") == pytest.approx([80.0])
    without = ["ber die Br cke"]
    assert rouge_l(without, [[GERMAN]]) == [100.0], "as published"
    assert rouge_l(without, [[GERMAN]], tokenize="intl") == pytest.approx([100 * 2 / 7])
    two = rouge_l([CHINESE, "x"], [[CHINESE], ["x"]], tokenize="zh", processes=2)
    assert two == [100.0, 100.0]


def test_an_unknown_tokenizer_is_refused_and_one_that_needs_more_says_so():
    for metric in (rouge_l, partial(rouge_n, n=1)):
        with pytest.raises(ValueError, match="tokenize must be one of rouge_score, none, zh"):
            metric(["a"], [["a"]], tokenize="words")
    with pytest.raises(ValueError, match="tokenize=ja-mecab cannot be had"):
        rouge_l(["a"], [["a"]], tokenize="ja-mecab")


@pytest.mark.parametrize(
    ("tokenize", "text", "share"),
    [
        ("rouge_score", "plain English, 42 words – don’t “count” €5…", 0),
        ("rouge_score", GERMAN, 100 * 2 / 13),
        ("rouge_score", CHINESE, 100),
        ("rouge_score", "Москва", 100),
        ("rouge_score", "नमस्ते", 100),
        ("rouge_score", "ok 👍👍", 50),
        ("rouge_score", "Ａ１", 100),
        ("rouge_score", " \n…!", 0),
        ("rouge_score", "a\ufffd", 0),
        ("intl", GERMAN + " Москва", 0),
        ("13a", "abcd 北京是の", 50),
        ("zh", "abcd 北京是の", 100 / 8),
        ("zh", "ไทย", 100),
        ("char", CHINESE, 0),
    ],
)
def test_the_share_of_the_characters_that_cannot_be_read(tokenize, text, share):
    assert unread(tokenize, [text, ""]) == pytest.approx(share)
    assert unread(tokenize, []) == 0


def test_what_a_metric_splits_words_by_is_known():
    assert tokenize_of(rouge_l) == tokenize_of(partial(rouge_n, n=1)) == "rouge_score"
    assert tokenize_of(partial(rouge_l, tokenize="zh")) == "zh"
    assert tokenize_of(exact_match) is None
    assert tokenize_of(max) is None
