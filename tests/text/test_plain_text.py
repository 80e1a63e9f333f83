"""Plain text besides the responses."""

import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from small_models import EOS, TOKENS, data_of, fitted, network
from torch.nn import functional as F

from amid.data.builtin import corpus
from amid.data.prompts import IGNORE
from amid.data.sources import load_documents
from amid.data.tokens import packed
from amid.errors import InputError
from amid.losses import CrossEntropy
from amid.text import DataText


def test_the_loss_on_plain_text_is_the_one_computed_by_hand(tmp_path):
    words = " ".join(example.outputs[0] for example in corpus("train", size=60))
    given = {"plain_text": [words, "Name a brave dog."], "batch_size": 4, "micro_batch_size": 3}
    given["plain_text_weight"] = 0.7
    data = data_of(tmp_path, size=4, **given)
    pieces = [
        ids[mask == 1]
        for batch in data.micro_batches(data.plain_batch(0))
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len({len(ids) for ids in pieces}) == 2, "the last piece is a short one"
    student, by_hand = network(), network()
    module, logged = fitted(data, DataText(), student, objective=CrossEntropy())

    def mean(rows):
        """Of the cross-entropy over all counted tokens."""
        parts = []
        for ids, n_prompt in rows:
            logits = by_hand(input_ids=ids[None].long()).logits[0]
            parts.append(F.cross_entropy(logits[:-1], ids[1:].long(), reduction="none")[n_prompt - 1 :])
        return torch.cat(parts).mean()

    on_data = mean((ids, n_prompt) for ids, n_prompt, *_ in data.train_tokens)
    plain = mean((ids, 1) for ids in pieces)
    assert logged["train/plain_text_loss"] == pytest.approx(float(plain.detach()), rel=1e-5)
    (on_data + 0.7 * plain).backward()
    assert logged["train/loss"] == pytest.approx(float((on_data + 0.7 * plain).detach()), rel=1e-5)
    for mine, theirs in zip(student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-4, atol=1e-6)
    assert module.response_tokens == sum(data.train_tokens.counted), "plain text is no response"


@settings(max_examples=50)
@given(st.lists(st.text("ab cd", max_size=40), min_size=1, max_size=6), st.integers(2, 9))
def test_documents_are_packed_one_after_the_other(documents, length):
    ids = [i for text in documents for i in [*TOKENS(text, add_special_tokens=False)["input_ids"], EOS]]
    pieces = list(
        packed(documents, lambda texts: TOKENS(texts, add_special_tokens=False)["input_ids"], EOS, length)
    )
    joined = [i for piece in pieces for i in piece]
    assert joined == ids[: len(joined)]
    assert len(ids) - len(joined) in (0, 1)
    assert all(len(piece) == length for piece in pieces[:-1])
    assert all(1 < len(piece) <= length for piece in pieces)


def test_all_plain_text_is_gone_through_again_and_again(tmp_path):
    documents = [f"{i} plus {i}" for i in range(99)]
    data = data_of(tmp_path, plain_text=documents, batch_size=3)
    n = len(data.plain_tokens)
    assert n % 3, "turns end within batches"
    pieces = [
        tuple(ids[mask == 1].tolist())
        for number in range(n)
        for batch in data.micro_batches(data.plain_batch(number))
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    whole = sorted(tuple(ids.tolist()) for ids, *_ in data.plain_tokens)
    assert sorted(pieces) == sorted(whole * 3)
    again = data_of(tmp_path, plain_text=documents, batch_size=3)
    assert torch.equal(again.plain_batch(5)[0][0], data.plain_batch(5)[0][0])
    other = data_of(tmp_path, plain_text=documents, batch_size=3, seed=2)
    batches = range(n // 3)
    assert [row[0].tolist() for i in batches for row in other.plain_batch(i)] != [
        row[0].tolist() for i in batches for row in data.plain_batch(i)
    ]


def test_the_responses_of_the_data_in_the_place_of_plain_text(tmp_path):
    data = data_of(tmp_path, size=9, plain_text="responses", batch_size=3)
    seen = [
        (tuple(ids[mask == 1].tolist()), int((labels != IGNORE).sum()))
        for number in range(6)
        for batch in data.micro_batches(data.plain_batch(number))
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        )
    ]
    whole = [(tuple(ids.tolist()), len(ids) - n_prompt) for ids, n_prompt, *_ in data.train_tokens]
    assert sorted(seen) == sorted(whole * 2)


def test_sources_of_plain_text(jsonl, tmp_path):
    file = jsonl({"text": "a"}, {"text": "b", "id": 1}, {"text": ""})
    assert load_documents(str(file)) == ["a", "b", ""]
    assert load_documents(f"{file}[1:2]") == ["b"]
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    assert load_documents(str(tmp_path / "text.txt")) == ["one\ntwo\n"]
    assert load_documents(["x"]) == ["x"]
    for content, message in (
        ({"text": 3}, "field 'text' is 3, not a string"),
        ({"output": "a"}, "field 'text' is missing"),
        ("{broken", r"data\.jsonl:1: not valid JSON"),
        ({"text": " "}, "holds no text; give another file, or null"),
    ):
        with pytest.raises(InputError, match=message):
            load_documents(str(jsonl(content)))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "id": [1, 2]}), tmp_path / "text.parquet")
    assert load_documents(f"{tmp_path / 'text.parquet'}[1:]") == ["b"]
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        load_documents(str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="holds no text"):
        load_documents([])
    with pytest.raises(
        InputError, match=r"must be a finite number above 0; no plain text is data\.plain_text=null$"
    ):
        data_of(tmp_path, plain_text_weight=0.0)
