"""Scores whether an answer ends in a number, and whether in the right one."""

import re
from collections.abc import Sequence
from decimal import Decimal

from amid.metrics.quality import check_pairs

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%.,])[-−][$€£]?|[$€£][-−])?"  # after a word or a number it is an operator
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)",
    flags=re.ASCII,
)
_MARKED = re.compile(rf"####\s*(?:\*\*)?[$€£]?{_NUMBER.pattern}", flags=re.ASCII)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_THOUSANDS = re.compile(r"\{,\}|,?\\[,!]")
"""The ways LaTeX sets off thousands: 1{,}000 or 1,\\!000 or 1\\,000."""


def final_number(text: str) -> Decimal | None:
    """Returns the number in which a worked solution ends; None if there is no number.

    It is the first of these that the text has:

    - the first number that stands right after a `####`, as in GSM8K's own solutions;
    - the number in the last `\\boxed{…}`, if that holds one number;
    - the last number.

    Thousands may be set off with commas. `$`, `€`, `£`, `%`, units and a final full stop are no part of it:
    5% is 5. A minus right before a number is its sign, except after a letter, digit or closing bracket: 7-3
    ends in 3.
    """
    if marked := _MARKED.search(text):
        return _number(marked)
    boxes = _BOX.findall(text)
    if boxes:
        numbers = _numbers(_THOUSANDS.sub(",", boxes[-1]).replace("\\$", "$"))
        return numbers[0] if len(numbers) == 1 else None
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def exact_answer(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Whether each prediction ends in the number of one of its references: 100 if so, else 0.

    Numbers are found by `final_number` and compared by value: 42 equals 42.00. A prediction without a number
    is wrong.

    Args:
        predictions: one worked solution for each prompt.
        references: right solutions of each prompt, at least one with a number.

    Raises:
        ValueError: if the lengths differ, or a prediction has no reference with a number or one string in
            place of a list.

    Reference: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems".
    """
    check_pairs(predictions, references)
    scores = []
    for index, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
        right = {number for answer in answers if (number := final_number(answer)) is not None}
        if not right:
            raise ValueError(
                f"references[{index}] ends in no number ({answers[0][-80:]!r}); "
                "score such data with exact_match"
            )
        scores.append(100.0 if final_number(prediction) in right else 0.0)
    return scores


def unparsable(texts: Sequence[str]) -> list[float]:
    """Whether each worked solution ends in no number that `final_number` finds: 100 if so, else 0.

    Raises:
        ValueError: for a string in place of a list.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list of strings, got the string {texts!r}; put it in a list")
    return [100.0 if final_number(text) is None else 0.0 for text in texts]


def _numbers(text: str) -> list[Decimal]:
    return [_number(match) for match in _NUMBER.finditer(text)]


def _number(match: re.Match[str]) -> Decimal:
    size = Decimal(match["digits"].replace(",", ""))
    return -size if match["sign"] else size
