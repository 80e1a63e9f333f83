"""Splits text into words for the scores, and measures how much of a text a score cannot read."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from itertools import chain
from typing import Any

ROUGE_SCORE = "rouge_score"
"""The published tokenisation of ROUGE: runs of a-z and 0-9 of lower-cased text, stemmed."""

_NO_ROUGE_WORD = re.compile("[^a-z0-9]+")
_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_SOUTH_EAST_ASIAN = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
_SPACELESS = {
    **dict.fromkeys(("13a", "intl", "none"), re.compile(f"[{_HAN}{_KANA}{_SOUTH_EAST_ASIAN}]")),
    "zh": re.compile(f"[{_KANA}{_SOUTH_EAST_ASIAN}]"),
}
"""The letters, of scripts without spaces between words, that a tokeniser leaves in one piece."""


def check_tokenize(tokenize: str, *further: str) -> None:
    """Refuses the name of a tokeniser that neither sacrebleu nor `further` has.

    Raises:
        ValueError: naming the known tokenisers.
    """
    if tokenize in further:
        return
    from sacrebleu.metrics.bleu import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        known = ", ".join([*further, *BLEU.TOKENIZERS])
        raise ValueError(f"tokenize must be one of {known}, got {tokenize!r}")


@cache
def sacrebleu_tokenizer(name: str) -> Any:
    """Returns a sacrebleu tokeniser by its name: a function from a text to its tokens, joined by spaces.

    Raises:
        ValueError: if a package that it needs besides sacrebleu is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU

    try:
        return BLEU(tokenize=name).tokenizer
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"tokenize={name} cannot be had ({reason}); zh, char and intl need nothing"
        ) from error


@cache
def words_of(tokenize: str) -> Callable[[str], list[str]]:
    """Returns a function that splits a text into the words that ROUGE compares; it caches recent texts.

    Raises:
        ValueError: for a tokeniser that is unknown or not installed.
    """
    check_tokenize(tokenize, ROUGE_SCORE)
    if tokenize == ROUGE_SCORE:
        from rouge_score.tokenizers import DefaultTokenizer  # imports all of NLTK

        split = DefaultTokenizer(use_stemmer=False).tokenize
        stem = lru_cache(maxsize=65536)(DefaultTokenizer(use_stemmer=True).tokenize)  # a list of one stem
        return lru_cache(maxsize=4096)(lambda text: [s for word in split(text) for s in stem(word)])
    tokenizer = sacrebleu_tokenizer(tokenize)
    return lru_cache(maxsize=4096)(lambda text: tokenizer(text.lower().rstrip()).split())


def unread(tokenize: str, texts: Iterable[str]) -> float:
    """Computes the share of characters, × 100, that a tokenisation drops or does not split into words.

    `rouge_score` drops all letters, digits and signs except a-z and 0-9. sacrebleu's `13a`, `intl` and `none`
    leave scripts without spaces between words in one piece: Chinese, Japanese, Thai and others. `zh` splits
    Chinese but not the other scripts. Punctuation, white space and control characters do not count.

    Returns:
        From 0 (also for texts without a character that counts) to 100 (nothing can be read).
    """
    lowered = [text.lower() for text in texts]
    foreign = Counter(chain.from_iterable(text for text in lowered if not text.isascii()))
    others = {c: n for c, n in foreign.items() if not c.isascii() and _counts(c)}
    counted = sum(len(_NO_ROUGE_WORD.sub("", text)) for text in lowered) + sum(others.values())
    if tokenize == ROUGE_SCORE:
        lost = sum(others.values())
    elif script := _SPACELESS.get(tokenize):
        lost = sum(n for c, n in others.items() if script.match(c))
    else:
        lost = 0
    return 100 * lost / counted if counted else 0.0


def _counts(character: str) -> bool:
    """Returns whether a character counts: a letter, a mark on one, a digit, or a sign other than U+FFFD."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or (category == "So" and character != "\ufffd")
