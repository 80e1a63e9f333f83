from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amid.metrics import exact_answer, final_number, unparsable

FORMS = {
    # GSM8K's own form
    "48/2 = <<48/2=24>>24 clips.\n#### 24": "24",
    "#### 1,234": "1234",
    "####-5": "-5",
    "#### $1,250.50": "1250.50",
    "#### \n5": "5",
    "#### $42 for 3 apples": "42",
    "#### €1,000 in 2 weeks": "1000",
    "#### **42**, not 7": "42",
    "It is 3.\n#### 42\nQuestion: 9 + 1?\nAnswer: 10\n#### 10": "42",  # goes on with another question
    "#### Step 1\nAdd 2 and 2.\nSo 4.": "4",  # a heading
    # boxes
    r"so \boxed{42}.": "42",
    r"\boxed{1} or rather \boxed{2}, after 3 tries": "2",
    r"\boxed{-\$5}": "-5",
    r"\boxed{1{,}234}": "1234",
    r"\boxed{12\,345}": "12345",
    r"\boxed{1,\!000}": "1000",
    r"\boxed{\text{42 dollars}}": "42",
    r"\boxed{\mathbf{x = 7}}": "7",
    r"\fbox{8\%}": "8",
    r"\boxed{\frac{1}{2}}": None,
    r"\boxed{3, 4} or 5": None,
    r"\boxed{}": None,
    r"of an open \boxed{3": "3",
    # the last number
    "He has 3 and buys 4, so 7.": "7",
    "The answer is $1,234,567.89!": "1234567.89",
    "That is -12 °C": "-12",
    "−12": "-12",
    "-$12": "-12",
    "$-12": "-12",
    "**-7**": "-7",
    "x=-5": "-5",
    "10-3": "3",
    "10 - 3": "3",
    "(10)-3": "3",
    "5%-3": "3",
    "2 * -3": "-3",
    "costs .5": "0.5",
    "20%": "20",
    "3.0": "3",
    "3.": "3",
    "1,2,3": "3",
    "": None,
    "no idea": None,
    "####": None,
    "...": None,
}


@pytest.mark.parametrize(("text", "number"), FORMS.items())
def test_forms(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


NUMBERS = st.decimals(-(10**9), 10**9, places=2) | st.integers(-(10**12), 10**12).map(Decimal)
WORDS = st.text("abc xyz.,!?\n()'", max_size=30)


def written(number: Decimal, commas: bool, currency: str, minus: str) -> str:
    size = f"{abs(number):,f}" if commas else f"{abs(number):f}"
    return f"{minus if number < 0 else ''}{currency}{size}"


@given(
    number=NUMBERS,
    commas=st.booleans(),
    currency=st.sampled_from(["", "$", "€"]),
    minus=st.sampled_from(["-", "−"]),
    mark=st.sampled_from([("", ""), ("", "%"), ("", "."), ("**", "**"), ("#### ", ""), (r"\boxed{", "}")]),
    before=WORDS,
    after=WORDS,
    other=st.integers(0, 99),
)
def test_whatever_stands_around_it(number, commas, currency, minus, mark, before, after, other):
    left, right = mark
    earlier = f"{before} {other} = "
    text = f"{earlier}{left}{written(number, commas, currency, minus)}{right} {after}"
    assert final_number(text) == number
    assert exact_answer([text], [[f"#### {number:f}"]]) == [100.0]
    assert exact_answer([text], [[f"#### {number + 1:f}"]]) == [0.0]


@given(st.text(max_size=60))
def test_any_text_has_a_number_or_none(text):
    number = final_number(text)
    assert number is None or number.is_finite()


def test_exact_answer():
    right = ["6 * 7 = <<6*7=42>>42\n#### 42"]
    answers = ["#### 42", "It is 42.00 dollars", "", "43", "#### 41 or 42"]
    assert exact_answer(answers, [right] * 5) == [100.0, 100.0, 0.0, 0.0, 0.0]
    assert exact_answer(["7"], [["#### 6", "#### 7"]]) == [100.0]


def test_a_reference_without_a_number():
    with pytest.raises(ValueError, match=r"references\[1\] ends in no number \('a few'\); .*exact_match"):
        exact_answer(["1", "2"], [["1"], ["a few"]])


def test_unparsable():
    assert unparsable(["#### 42", "no idea", r"\boxed{3, 4}", "", "7 dogs"]) == [0, 100, 100, 100, 0]
    with pytest.raises(ValueError, match="texts must be a list of strings"):
        unparsable("42")
