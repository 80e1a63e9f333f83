import itertools
import math
import time
from collections import Counter
from statistics import fmean

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from amid.metrics import distinct_n, overlong, repetition, self_bleu, self_bleu_per_prompt
from amid.metrics.diversity import MAX_NGRAM_ORDER

BLEU13A = Tokenizer13a()
SMOOTHINGS = [
    ("none", None),
    ("floor", None),
    ("floor", 0.01),
    ("add-k", None),
    ("add-k", 2.0),
    ("exp", None),
]

words = st.lists(st.sampled_from(["a", "b", "c", "d", "e.", "it's", "猫"]), max_size=9).map(" ".join)
groups = st.lists(words | st.text(max_size=12), min_size=2, max_size=6)


def text_by_text(texts: list[str], **settings) -> float:
    return fmean(
        sacrebleu.sentence_bleu(text, texts[:i] + texts[i + 1 :], **settings).score
        for i, text in enumerate(texts)
    )


def by_definition_of_texygen(texts: list[list[str]], n: int, epsilon: float = 0.1) -> float:
    """The mean over texts of NLTK's sentence BLEU with weights 1/n and method1, from its formula.

    BLEU = BP · Π p_k^(1/n), p_k = clipped matches of k-grams / k-grams (at least 1), without matches
    epsilon / k-grams; 0 without a matched word. BP = exp(1 - r/c) for c ≤ r, the nearest reference.
    """

    def grams(words, k):
        return Counter(tuple(words[i : i + k]) for i in range(len(words) - k + 1))

    scores = []
    for i, words in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        product = 1.0
        for k in range(1, n + 1):
            own, references = grams(words, k), [grams(other, k) for other in others]
            matches = sum(min(m, max(reference[g] for reference in references)) for g, m in own.items())
            if k == 1 and matches == 0:
                product = 0.0
                break
            product *= ((matches or epsilon) / max(1, sum(own.values()))) ** (1 / n)
        r = min((len(other) for other in others), key=lambda length: (abs(length - len(words)), length))
        penalty = 1.0 if len(words) > r else math.exp(1 - r / len(words)) if words else 0.0
        scores.append(100 * penalty * product)
    return fmean(scores)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=9), min_size=2, max_size=6))
def test_texygens_self_bleu_is_method1(n, texts):
    given_texts = [" ".join(words) for words in texts]
    ours = self_bleu(given_texts, smooth_method="method1", order=n, tokenize="none")
    assert ours == pytest.approx(by_definition_of_texygen(texts, n), abs=1e-9)
    per_prompt = self_bleu_per_prompt([given_texts], smooth_method="method1", order=n, tokenize="none")
    assert per_prompt == pytest.approx(ours)


def test_method1_by_hand_and_beside_the_default():
    # Unigrams 1/2, the bigram 0.1/1; no order is left out: of 4 orders two have 0.1 of one n-gram.
    by_hand = 100 * (0.5 * 0.1 * 0.1 * 0.1) ** (1 / 4)
    assert self_bleu(["a b", "a c"], smooth_method="method1") == pytest.approx(by_hand)
    by_hand = 100 * (0.5 * 0.01) ** (1 / 2)
    assert self_bleu(["a b", "a c"], smooth_method="method1", smooth_value=0.01, order=2) == (
        pytest.approx(by_hand)
    )
    assert self_bleu(["a b", "a c"]) == pytest.approx(50), "effective order, exponential"
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        self_bleu(["a", "b"], order=0)


def test_a_case_by_hand():
    # Each text: unigrams 1/2, the bigram 0/1, smoothed to 1/2; equal lengths, so no brevity penalty.
    assert self_bleu(["a b", "a c"]) == pytest.approx(100 * math.sqrt(0.5 * 0.5))
    # "a": 1/1, but shorter than its reference of 2; "a b": unigrams 1/2, the bigram smoothed to 1/2.
    assert self_bleu(["a", "a b"]) == pytest.approx((100 * math.exp(1 - 2) + 50) / 2)


def test_counts_are_clipped_at_the_largest_of_another_text():
    # Unigrams of "a a a": 2/3, as the others have at most 2; bigrams 1/2; the trigram 0/1, smoothed to 1/2.
    texts = ["a a a", "a a b", "c a d"]
    by_hand = 100 * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)
    assert sacrebleu.sentence_bleu(texts[0], texts[1:]).score == pytest.approx(by_hand)
    assert self_bleu(texts) == pytest.approx(text_by_text(texts), abs=1e-9)


@pytest.mark.parametrize(("method", "value"), SMOOTHINGS)
@given(groups)
def test_equal_to_sacrebleu_on_random_texts(method, value, texts):
    ours = self_bleu(texts, smooth_method=method, smooth_value=value)
    assert ours == pytest.approx(text_by_text(texts, smooth_method=method, smooth_value=value), abs=1e-9)
    assert 0 <= ours <= 100 + 1e-9


@pytest.mark.parametrize(("method", "value"), SMOOTHINGS)
def test_equal_to_sacrebleu_on_real_texts(real_texts, method, value):
    texts = [text[:300] for text in real_texts[:40]]
    ours = self_bleu(texts, smooth_method=method, smooth_value=value)
    assert ours == pytest.approx(text_by_text(texts, smooth_method=method, smooth_value=value), abs=1e-9)


def test_copies_among_real_texts(real_texts):
    texts = [text[:200] for text in real_texts[:12]] * 2 + real_texts[20:22] + [""]
    assert self_bleu(texts) == pytest.approx(text_by_text(texts), abs=1e-9)


@given(st.lists(st.text(alphabet="猫犬が好きです。はい", max_size=8), min_size=2, max_size=4))
def test_text_without_spaces_with_the_tokeniser_for_it(texts):
    ours = self_bleu(texts, tokenize="char")
    assert ours == pytest.approx(text_by_text(texts, tokenize="char"), abs=1e-9)


@given(groups)
def test_the_order_of_the_texts_does_not_count(texts):
    assert self_bleu(texts) == pytest.approx(self_bleu(texts[::-1]), abs=1e-9)


def test_equal_texts_score_100():
    assert self_bleu(["The quick brown fox jumps."] * 3) == pytest.approx(100)
    assert self_bleu(["yes"] * 2) == pytest.approx(100)


def test_texts_with_nothing_in_common_score_0():
    assert self_bleu(["a b c", "d e f", "g"]) == 0
    assert self_bleu(["yes", "no"]) == 0


def test_empty_texts_score_0():
    assert self_bleu(["", ""]) == 0
    assert self_bleu([" ", "a b", "a b"]) == pytest.approx(text_by_text([" ", "a b", "a b"]), abs=1e-9)


def test_per_prompt_is_the_mean_over_prompts():
    samples = [["a b c d", "a b c d"], ["x", "y", "z"], ["a b", "a c"]]
    assert self_bleu_per_prompt(samples) == pytest.approx((100 + 0 + 50) / 3)
    # Different prompts do not make it more diverse.
    assert self_bleu([text for texts in samples for text in texts]) != self_bleu_per_prompt(samples)


def test_per_prompt_hands_its_settings_on():
    samples = [["a b c", "a b d"], ["a b", "a c"]]
    settings = {"smooth_method": "floor", "smooth_value": 0.3, "tokenize": "char"}
    expected = fmean(text_by_text(texts, **settings) for texts in samples)
    assert self_bleu_per_prompt(samples, **settings) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "at least 2, got 0"),
        ({"texts": ["a"]}, "at least 2, got 1"),
        ({"texts": "ab"}, "at least 2, got the string 'ab'"),
        (
            {"texts": ["a", "b"], "smooth_method": "other"},
            "smooth_method must be one of none, floor, add-k, exp",
        ),
        ({"texts": ["a", "b"], "tokenize": "14a"}, "tokenize must be one of .*13a.*, got '14a'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        self_bleu(**arguments)


def test_mistakes_of_one_prompt_are_named():
    with pytest.raises(ValueError, match=r"samples\[1\]: .*at least 2, got 1"):
        self_bleu_per_prompt([["a", "b"], ["a"]])
    with pytest.raises(ValueError, match="at least one prompt"):
        self_bleu_per_prompt([])


def test_time_grows_with_the_words_and_not_with_their_square():
    def seconds(n: int) -> float:
        texts = [" ".join(f"w{(i * j * j) % 997}" for j in range(20)) for i in range(n)]
        started = time.perf_counter()
        self_bleu(texts)
        return time.perf_counter() - started

    short = min(seconds(200) for _ in range(3))
    assert min(seconds(1600) for _ in range(2)) < 30 * short  # 8 times the words; the square would be 64


class TestDistinctAndRepeated:
    def test_by_hand(self):
        # Bigrams: a b, b a, a b; a b.
        assert distinct_n(["a b a b", "a b"], n=2) == 50
        assert repetition(["a b a b", "a b"], n=2) == [pytest.approx(100 / 3), 0]
        assert overlong(["a b c", "a b"], [["a"], ["a", "x"]]) == [100, 0]

    def test_distinct_is_linear(self):
        fresh = itertools.count()  # the tokeniser keeps what it has seen

        def seconds(n):
            texts = [" ".join(f"w{next(fresh)}" for _ in range(10)) for _ in range(n)]
            started = time.process_time()
            distinct_n(texts, n=2)
            return time.process_time() - started

        few = min(seconds(500) for _ in range(3))
        assert min(seconds(4000) for _ in range(2)) < 30 * few  # 8 times the words; the square would be 64

    @given(groups)
    def test_distinct_is_the_share_of_a_set(self, texts):
        tokens = [BLEU13A(text).split() for text in texts]
        bigrams = [pair for words in tokens for pair in itertools.pairwise(words)]
        found = distinct_n(texts, n=2)
        if bigrams:
            assert found == pytest.approx(100 * len(set(bigrams)) / len(bigrams))
        else:
            assert math.isnan(found)

    @given(words)
    def test_a_text_without_repetition_said_twice_has_some(self, text):
        once, twice = repetition([text, f"{text} {text}"], n=1)
        assert once <= twice or not text
        assert twice >= 50 or not text.strip()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: distinct_n([], n=2), "at least one text"),
            (lambda: distinct_n("text", n=2), "at least one text"),
            (lambda: distinct_n(["a"], n=0), "n must be at least 1"),
            (lambda: repetition(["a"], tokenize="x"), "tokenize must be one of"),
            (lambda: overlong(["a"], [["a"]], times=0.5), "times must be at least 1"),
        ],
    )
    def test_what_is_refused(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_longest_ngrams_are_those_of_sacrebleu():
    assert MAX_NGRAM_ORDER == sacrebleu.metrics.bleu.MAX_NGRAM_ORDER
