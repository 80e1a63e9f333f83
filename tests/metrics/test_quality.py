import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from amid.metrics import exact_match, rouge_l

WORDS = ["the", "cat", "sat", "sitting", "sits", "on", "mats", "a-1", "2.5", "Ünder", "naïve", "猫", ",", "!"]
words = st.lists(st.sampled_from(WORDS), max_size=12)
texts = words.map(" ".join) | st.text(max_size=30)


def of_the_package(prediction: str, references: list[str]) -> float:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return 100 * float(scorer.score_multi(references, prediction)["rougeL"].fmeasure)


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


def test_equal_to_rouge_score_on_real_answers(real_texts):
    answers, others = real_texts[:80], real_texts[80:160]
    backwards = [" ".join(reversed(text.split())) for text in answers]
    for predictions in (answers, backwards, [text[:60] for text in answers]):
        references = [[other, backward] for other, backward in zip(others, backwards, strict=True)]
        references[0] = answers[:1]
        expected = [of_the_package(p, r) for p, r in zip(predictions, references, strict=True)]
        assert rouge_l(predictions, references) == expected


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
