import subprocess
import sys

import numpy
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from amid.metrics import SetScore, bleu, chrf, rouge_l, set_score

WORDS = ["the", "cat", "sat", "on", "Mats", "a-1", "2.5", "Ünder", "naïve", "猫が", ",", "!", "&quot;"]
texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
answers = texts.filter(bool)
one_reference = st.lists(st.tuples(texts, answers), min_size=1, max_size=6)

ANSWERS = ["The cat sat on the mat .", "", "It's 2.5 Ünder naïve !", "Two dogs bark at night again ."]
REFERENCES = [
    "The cat sat on a mat .",
    "Nobody came .",
    "It is 2.5, Ünder naïve!",
    "Two dogs bark at night .",
]


@given(one_reference)
def test_equal_to_sacrebleu(pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    each = [[reference] for reference in references]
    assert bleu(predictions, each).value == sacrebleu.corpus_bleu(predictions, [references]).score
    assert chrf(predictions, each).value == sacrebleu.corpus_chrf(predictions, [references]).score
    assert 0 <= bleu(predictions, each).value <= 100 + 1e-9


@given(st.lists(st.tuples(texts, answers, answers), min_size=1, max_size=5))
def test_equal_to_sacrebleu_with_several_references(rows):
    predictions, *streams = map(list, zip(*rows, strict=True))
    each = [list(row[1:]) for row in rows]
    assert bleu(predictions, each).value == sacrebleu.corpus_bleu(predictions, streams).score
    assert chrf(predictions, each).value == sacrebleu.corpus_chrf(predictions, streams).score


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        (bleu, []),
        (lambda *pair: bleu(*pair, tokenize="char", lowercase=True), ["--tokenize", "char", "-lc"]),
        (chrf, ["--metrics", "chrf"]),
        (lambda *pair: chrf(*pair, word_order=2), ["--metrics", "chrf", "--chrf-word-order", "2"]),
    ],
)
def test_equal_to_the_command(metric, arguments, tmp_path):
    (tmp_path / "references").write_text("\n".join(REFERENCES) + "\n", encoding="utf-8")
    (tmp_path / "answers").write_text("\n".join(ANSWERS) + "\n", encoding="utf-8")
    names = [str(tmp_path / "references"), "-i", str(tmp_path / "answers")]
    command = [sys.executable, "-m", "sacrebleu", *names, "--score-only", "-w", "10", *arguments]
    printed = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert metric(ANSWERS, [[r] for r in REFERENCES]).value == pytest.approx(printed, abs=1e-9)
    assert printed > 10


def test_it_is_no_mean_over_sentences():
    each = [[r] for r in REFERENCES]
    whole = bleu(ANSWERS, each).value
    assert whole != pytest.approx(sum(bleu([a], [r]).value for a, r in zip(ANSWERS, each, strict=True)) / 4)


def test_copies_score_100_and_empty_answers_0():
    each = [[r] for r in REFERENCES]
    for metric in (bleu, chrf):
        assert metric(REFERENCES, each).value == pytest.approx(100)
        assert metric([""] * 4, each).value == 0


def test_the_signature_says_how():
    assert bleu(["a"], [["a"]]).signature == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )
    assert "tok:zh" in str(bleu(["a"], [["a"]], tokenize="zh").signature)
    assert "nrefs:var" in str(chrf(["a", "b"], [["a"], ["b", "c"]]).signature)
    assert "nw:2" in str(chrf(["a"], [["a"]], word_order=2).signature)


def test_mistakes():
    for metric in (bleu, chrf):
        with pytest.raises(ValueError, match="predictions is empty"):
            metric([], [])
        with pytest.raises(ValueError, match=r"references\[0\] must be a list"):
            metric(["a"], ["a"])
    with pytest.raises(ValueError, match=r"tokenize must be one of .*13a.*, got 'x'"):
        bleu(["a"], [["a"]], tokenize="x")
    with pytest.raises(ValueError, match="word_order must be at least 0, got -1"):
        chrf(["a"], [["a"]], word_order=-1)


def test_the_score_of_a_set_is_the_mean_or_the_metrics_own():
    each = [[r] for r in REFERENCES]
    assert set_score(rouge_l, ANSWERS, each) == SetScore(sum(rouge_l(ANSWERS, each)) / 4)
    assert set_score(bleu, ANSWERS, each) == bleu(ANSWERS, each)
    with pytest.raises(ValueError, match="predictions is empty"):
        set_score(rouge_l, [], [])


@given(st.data())
def test_a_draw_has_the_score_of_what_is_drawn(data):
    rows = data.draw(
        st.lists(st.tuples(texts, st.lists(answers, min_size=1, max_size=3)), min_size=1, max_size=5)
    )
    often = data.draw(
        st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)).filter(lambda often: any(often))
    )
    drawn = [row for row, n in zip(rows, often, strict=True) for _ in range(n)]
    for metric in (bleu, chrf):
        whole = metric(*map(list, zip(*rows, strict=True)))
        once, found = whole.resampled(numpy.array([[1] * len(rows), often]))
        assert once == pytest.approx(whole.value, abs=1e-9)
        assert found == pytest.approx(metric(*map(list, zip(*drawn, strict=True))).value, abs=1e-9)
