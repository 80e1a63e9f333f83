import pytest
import torch

from amid.data import Example, InstructionData
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.data.datamodule import LikeLengthBatches, collate
from amid.data.prompts import IGNORE, Template
from amid.errors import InputError


def data(tmp_path, **settings):
    return InstructionData(
        tokenizer=tokenizer(),
        train=corpus("train", size=100),
        valid=corpus("valid", size=10),
        test={"open": corpus("test", size=5, kind="open")},
        template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        max_prompt_length=40,
        max_length=64,
        cache_dir=str(tmp_path),
        **settings,
    )


def test_every_row_once_an_epoch_in_an_order_of_seed_and_epoch():
    lengths = [i % 17 for i in range(203)]
    batches = LikeLengthBatches(lengths, 8, seed=1)
    first = list(batches)
    assert len(first) == len(batches) == 26
    assert sorted(i for batch in first for i in batch) == list(range(203))
    assert first == list(LikeLengthBatches(lengths, 8, seed=1))
    assert first != list(LikeLengthBatches(lengths, 8, seed=2))
    batches.set_epoch(1)
    assert first != list(batches)


def test_batches_hold_rows_of_like_lengths():
    lengths = torch.randint(1, 100, (400,)).tolist()
    spread = [
        max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in LikeLengthBatches(lengths, 8, seed=0)
    ]
    assert sum(spread) / len(spread) < 10


def test_labels_are_response_and_eos_only_and_padding_is_to_the_longest():
    rows = [(torch.tensor([5, 6, 7, 8]), 2, 0), (torch.tensor([5, 9]), 1, 1)]
    (batch,) = collate(rows, pad_token_id=0, micro_batch_size=None)
    assert batch["input_ids"].tolist() == [[5, 9, 0, 0], [5, 6, 7, 8]]
    assert batch["labels"].tolist() == [[IGNORE, 9, IGNORE, IGNORE], [IGNORE, IGNORE, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["rows"].tolist() == [1, 0]
    assert len(collate(rows, 0, micro_batch_size=1)) == 2


def test_tokenised_once(tmp_path, monkeypatch):
    module = data(tmp_path)
    first = [batch[0]["input_ids"].tolist() for batch in module.train_dataloader()]
    assert len(list(tmp_path.glob("tokens-*.safetensors"))) == 1
    monkeypatch.setattr("amid.data.prompts.Encoder.example", lambda *_: pytest.fail("tokenised again"))
    assert first == [batch[0]["input_ids"].tolist() for batch in data(tmp_path).train_dataloader()]


def test_pad_equal_to_eos_keeps_the_eos_label(tmp_path):
    module = data(tmp_path)
    module.tokenizer.pad_token = module.tokenizer.eos_token
    batch = next(iter(module.train_dataloader()))[0]
    eos = module.tokenizer.eos_token_id
    assert (batch["labels"] == eos).sum() == len(batch["labels"])


@pytest.mark.parametrize("name", ["batch_size", "micro_batch_size", "valid_prompts", "test_prompts"])
def test_numbers_that_are_not_positive(tmp_path, name):
    with pytest.raises(InputError, match=f"data.{name}=0 must be at least 1"):
        data(tmp_path, **{name: 0})


def test_examples_of_the_sets(tmp_path):
    module = data(tmp_path, test_prompts=3)
    assert isinstance(module.valid_examples[0], Example)
    assert len(module.test_examples["open"]) == 3
