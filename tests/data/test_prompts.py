import pytest

from amid.data import Example, Template
from amid.data.builtin import tokenizer
from amid.data.prompts import Encoder
from amid.errors import InputError

TEMPLATE = Template("Do: {instruction}\nAnswer:", "Do: {instruction}\nWith: {input}\nAnswer:")


def encoder(max_prompt_length=64, max_length=96):
    return Encoder(tokenizer(), TEMPLATE, max_prompt_length, max_length)


def test_prompt_response_and_eos():
    enc = encoder()
    ids, n_prompt = enc.example(Example("sort", "b a", ("a b",)))
    tok = enc.tokenizer
    assert tok.decode(ids[:n_prompt]) == "Do: sort\nWith: b a\nAnswer:"
    assert tok.decode(ids[n_prompt:-1]) == "a b"
    assert ids[-1] == tok.eos_token_id


def test_a_long_prompt_loses_the_end_of_its_input_and_keeps_the_template():
    enc = encoder(max_prompt_length=40)
    ids = enc.prompt(Example("keep this", "lose " * 100, ("x",)))
    text = enc.tokenizer.decode(ids)
    assert len(ids) <= 40
    assert text.startswith("Do: keep this\nWith: lose lose")
    assert text.endswith("\nAnswer:")


def test_a_long_instruction_is_cut_where_cutting_the_input_is_not_enough():
    enc = encoder(max_prompt_length=40)
    ids = enc.prompt(Example("word " * 100, "input", ("x",)))
    text = enc.tokenizer.decode(ids)
    assert len(ids) <= 40
    assert text.startswith("Do: word word")
    assert text.endswith("\nAnswer:")


def test_a_long_response_is_cut_and_has_no_eos():
    enc = encoder(40, 48)
    ids, _ = enc.example(Example("x", "", ("word " * 100,)))
    assert len(ids) == 48
    assert enc.tokenizer.eos_token_id not in ids


def test_limits_below_the_template():
    with pytest.raises(
        InputError, match=r"max_prompt_length=3 is below what the template itself needs; use at"
    ):
        encoder(3, 10)
    with pytest.raises(InputError, match=r"max_length=30 leaves no room"):
        encoder(40, 30)


@pytest.mark.parametrize("text", ["{instruction} {other}", "no field"])
def test_a_template_with_a_wrong_field(text):
    with pytest.raises(InputError, match=r"template.without_input"):
        Template(text, "{instruction} {input}")
