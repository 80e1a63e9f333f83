"""Rows have the token ids and the counted tokens of TRL's preparation, for five chat templates of our own and
for those in the installed TRL."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from chat import FAMILIES, chat_tokenizer, messages, template_of

from amid.data import Template
from amid.data.prompts import Encoder
from amid.data.rows import FIELDS, example_of

trl = pytest.importorskip("trl", reason="no TRL here: pip install -e '.[trl]'")
from datasets import Dataset, disable_progress_bars  # noqa: E402

disable_progress_bars()
SHIPPED = Path(trl.__file__).parent / "chat_templates"
SHIPPED_NAMES = (
    "qwen2_5",
    "qwen2_5_training",
    "qwen3",
    "llama3",
    "llama3_training",
    "gemma",
    "gemma_training",
)
VERBATIM, WITHOUT_THOUGHTS = (
    Template("{instruction}", "{instruction}\n\n{input}", chat={"enable_thinking": thinking})
    for thinking in (True, False)
)


def shipped(name):
    file = SHIPPED / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this TRL has no {file.name}")
    return file.read_text()


def prepared(rows, tok, **settings):
    """The token ids and labels that TRL's `SFTTrainer` makes of rows."""
    given = {"max_length": None, "report_to": [], "use_cpu": True, "bf16": False, **settings}
    args = trl.SFTConfig(output_dir="unused", shuffle_dataset=False, **given)
    trainer = SimpleNamespace(chat_template=None, completion_only_loss="prompt" in rows[0], _tokenizer=tok)
    data = trl.SFTTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tok, args, False, None, "train")
    return list(zip(data["input_ids"], data["labels"], strict=True))


def encoded(rows, tok, template=VERBATIM, max_length=900, **settings):
    """The token ids and labels that we make of them."""
    encoder = Encoder(tok, template, min(400, max_length - 1), max_length, **settings)
    found = []
    for row in rows:
        ids, n_prompt, _, _, counts = encoder.example(example_of(row, "here", FIELDS)[0])
        counts = counts or [place >= n_prompt for place in range(len(ids))]
        found.append((ids, [i if counted else -100 for i, counted in zip(ids, counts, strict=True)]))
    return found


def conversations(family):
    system = None if family.startswith("gemma") else "Be brief."
    return [
        messages("sort b a", "a b"),
        messages(" spaces ", " around\n", "\n\nlines", "<b>bold</b>", "and more", "end", system=system),
        messages(
            "why", "<think>\nso\n</think>\n\nyes", "really", "<think>\nwell\n</think>\n\nno", system=system
        ),
        messages("one", "two\n", "three", "four"),
    ]


def in_trl_form(rows):
    """Each conversation as messages; TRL takes variables of a template from the row."""
    return [{"messages": of, "chat_template_kwargs": {"enable_thinking": True}} for of in rows]


def completions(rows, thinking=True):
    """Each conversation as a prompt and the last answer."""
    return [
        {"prompt": of[:-1], "completion": of[-1:], "chat_template_kwargs": {"enable_thinking": thinking}}
        for of in rows
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_with_marked_answers(family):
    rows, tok = in_trl_form(conversations(family)), chat_tokenizer(template_of(family))
    assert encoded(rows, tok) == prepared(rows, tok, assistant_only_loss=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_and_sharegpt_without_marks(family):
    rows, tok = in_trl_form(conversations(family)), chat_tokenizer(template_of(family, marks=False))
    found, theirs = encoded(rows, tok), prepared(rows, tok)
    assert [ids for ids, _ in found] == [ids for ids, _ in theirs]
    if family not in ("smollm2", "qwen3"):  # the one's marks leave white space out, the other's have thoughts
        assert found == encoded(rows, chat_tokenizer(template_of(family)))
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [
        {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]}
        for row in rows
    ]
    assert encoded(shared, tok) == found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("turns", ["all", "last"])
def test_prompt_and_completion_of_messages(family, turns):
    rows, tok = completions(conversations(family)), chat_tokenizer(template_of(family, marks=turns == "all"))
    assert encoded(rows, tok, turns=turns) == prepared(rows, tok)


def test_answers_without_thoughts_as_the_template_or_the_row_says():
    conversation = conversations("qwen3")[1]
    rows, tok = completions([conversation], thinking=False), chat_tokenizer(template_of("qwen3"))
    found = encoded(rows, tok)
    assert found == prepared(rows, tok) != encoded(completions([conversation]), tok)
    assert found == encoded([{**rows[0], "chat_template_kwargs": None}], tok, WITHOUT_THOUGHTS)
    assert tok.decode([i for i in found[0][1] if i >= 0]) == "end<|im_end|>\n"


def test_thoughts_in_place_of_the_empty_block_of_the_prompt():
    rows, tok = completions(conversations("qwen3")[2:3], thinking=False), chat_tokenizer(template_of("qwen3"))
    (ids, labels), (their_ids, their_labels) = encoded(rows, tok)[0], prepared(rows, tok)[0]
    assert ids == their_ids
    counted, theirs = (tok.decode([i for i in of if i >= 0]) for of in (labels, their_labels))
    assert counted == "<think>\nwell\n</think>\n\nno<|im_end|>\n"
    assert theirs == counted.removeprefix("<think>\n")  # it begins both


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_the_templates_that_trl_ships(name):
    tok = chat_tokenizer(shipped(name))
    rows = completions(conversations(name))
    assert encoded(rows, tok) == prepared(rows, tok)
    rows, marked = in_trl_form(conversations(name)), "training" in name
    found, theirs = encoded(rows, tok), prepared(rows, tok, assistant_only_loss=marked)
    assert found == theirs if marked else [ids for ids, _ in found] == [ids for ids, _ in theirs]


def test_a_long_conversation_loses_its_end():
    rows, tok = in_trl_form(conversations("llama3")[1:2]), chat_tokenizer(template_of("llama3"))
    whole = len(encoded(rows, tok)[0][0])
    for max_length in (whole - 1, whole - 10, whole - 30):
        encoder = {"max_length": max_length}
        assert encoded(rows, tok, **encoder) == prepared(rows, tok, assistant_only_loss=True, **encoder)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_plain_text(adds_bos):
    rows, tok = [{"text": "some words"}, {"text": " more words\n"}], chat_tokenizer(None, adds_bos)
    assert encoded(rows, tok, Template("{instruction}", "{instruction}\n\n{input}")) == prepared(rows, tok)


def test_prompt_and_completion_as_they_stand():
    rows, tok = (
        [{"prompt": "Q: two plus two\nA:", "completion": " four"}],
        chat_tokenizer(None, adds_bos=False),
    )
    template = Template("{instruction}", "{instruction}\n\n{input}", chat=None)
    assert encoded(rows, tok, template) == prepared(rows, tok)
