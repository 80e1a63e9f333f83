import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amid.data import Example, InstructionData
from amid.data.batches import Batches
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.data.prompts import IGNORE, Encoder
from amid.data.templates import Template
from amid.data.tokens import Row, Tokens, collate
from amid.errors import InputError


def data(tmp_path, test=None, **settings):
    return InstructionData(
        tokenizer=tokenizer(),
        train=corpus("train", size=100),
        valid=corpus("valid", size=10),
        test=test or {"open": corpus("test", size=5, kind="open")},
        template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        max_prompt_length=40,
        max_length=64,
        cache_dir=str(tmp_path),
        **settings,
    )


def test_every_row_once_an_epoch_in_an_order_of_seed_and_epoch():
    lengths = [i % 17 for i in range(203)]
    batches = Batches(lengths, 8, seed=1)
    first = list(batches)
    assert len(first) == len(batches) == 26
    assert sorted(i for batch in first for i in batch) == list(range(203))
    assert first == list(Batches(lengths, 8, seed=1))
    assert first != list(Batches(lengths, 8, seed=2))
    batches.set_epoch(1)
    second = list(batches)
    assert first != second
    batches.set_epoch(0)
    started = iter(batches)
    batches.set_epoch(1)  # as Lightning does where a run goes on
    assert list(started) == second


def test_batches_hold_rows_of_like_lengths():
    lengths = torch.randint(1, 100, (400,)).tolist()
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in Batches(lengths, 8, seed=0)]
    assert sum(spread) / len(spread) < 10


def test_labels_are_response_and_eos_only_and_padding_is_to_the_longest():
    rows = [Row(torch.tensor([5, 6, 7, 8]), 2, 0), Row(torch.tensor([5, 9]), 1, 1)]
    (batch,) = collate(rows, pad_token_id=0, micro_batch_size=None)
    assert batch["input_ids"].tolist() == [[5, 9, 0, 0], [5, 6, 7, 8]]
    assert batch["labels"].tolist() == [[IGNORE, 9, IGNORE, IGNORE], [IGNORE, IGNORE, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["rows"].tolist() == [1, 0]
    assert len(collate(rows, 0, micro_batch_size=1)) == 2


ROWS = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def rows_of(lengths):
    """Rows that tell each other apart: the first token is the row's number."""
    return [Row(torch.tensor([100 + i, *range(1, n)]), min(1, n - 1), i) for i, n in enumerate(lengths)]


@given(ROWS, st.integers(1, 80))
def test_a_step_is_cut_at_the_token_budget_and_holds_every_row_once(lengths, budget):
    rows = rows_of(lengths)
    parts = collate(rows, pad_token_id=0, tokens_per_batch=budget)
    held = []
    for part in parts:
        n, longest = part["input_ids"].shape
        assert n == 1 or n * longest <= budget
        for ids, kept, row in zip(
            part["input_ids"], part["attention_mask"].bool(), part["rows"].tolist(), strict=True
        ):
            held.append((row, ids[kept].tolist()))
    assert sorted(held) == [(row.number, row.ids.tolist()) for row in rows]
    # As few parts as there can be: no two neighbours would fit into one.
    for first, second in itertools.pairwise(parts):
        n, longest = len(first["input_ids"]) + 1, int(second["attention_mask"].sum(1).min())
        assert n * longest > budget
    assert len(collate(rows, 0)) == 1


@given(ROWS, st.integers(1, 80))
def test_the_budget_changes_neither_loss_nor_gradient(lengths, budget):
    rows = rows_of(lengths)

    def loss_and_gradient(**limit):
        weights = torch.linspace(-1, 1, 200 * 7, dtype=torch.float64).reshape(200, 7).requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for part in collate(rows, pad_token_id=0, **limit):
            counted = part["labels"] != IGNORE
            logits = weights[part["input_ids"]].cumsum(1)[:, :-1][counted[:, 1:]]
            total = (
                total
                - (logits.log_softmax(-1).gather(1, part["labels"][:, 1:][counted[:, 1:]][:, None] % 7)).sum()
            )
        total.backward()
        return total.detach(), weights.grad

    torch.testing.assert_close(loss_and_gradient(tokens_per_batch=budget), loss_and_gradient())


def test_training_and_validation_keep_to_the_budget(tmp_path):
    module = data(tmp_path, batch_size=16, tokens_per_batch=100)
    for loader, n in ((module.train_dataloader(), 100), (module.val_dataloader(), 10)):
        parts = [part["input_ids"] for step in loader for part in module.micro_batches(step)]
        assert sum(map(len, parts)) == n
        assert max(part.numel() for part in parts) <= 100
        assert any(len(part) > 1 for part in parts)


def test_with_a_mean_of_micro_batches_rows_are_random_ones(tmp_path):
    def steps(**given):
        module = data(tmp_path, batch_size=25, micro_batch_size=5, seed=1, **given)
        return [
            [part["rows"].tolist() for part in module.micro_batches(step)]
            for step in module.train_dataloader()
        ]

    lengths = data(tmp_path).train_tokens.lengths

    def spread(groups):
        return sum(max(part) - min(part) for part in groups) / len(groups)

    of_steps = {}
    for mean in ("step", "micro_batch"):
        parts = [[[lengths[i] for i in part] for part in step] for step in steps(mean=mean)]
        assert sorted(i for step in steps(mean=mean) for part in step for i in part) == list(range(100))
        of_steps[mean] = (
            spread([[n for part in step for n in part] for step in parts]),
            spread([part for step in parts for part in step]),
        )
    assert of_steps["micro_batch"][0] > 1.5 * of_steps["step"][0]
    assert of_steps["micro_batch"][1] > 3 * of_steps["step"][1]
    assert steps(mean="micro_batch") == steps(mean="micro_batch")
    for wrong, message in (
        ({"mean": "token"}, "data.mean=token must be step or micro_batch"),
        ({"mean": "micro_batch", "tokens_per_batch": 9}, r"tokens_per_batch=9 makes these .* null"),
    ):
        with pytest.raises(InputError, match=message):
            data(tmp_path, **wrong)


def test_what_makes_other_tokens(tmp_path):
    for truncation in ("input", "right"):
        assert data(tmp_path, truncation=truncation).train_tokens
    assert len(list(tmp_path.glob("tokens-*.safetensors"))) == 2


def test_one_limit_only(tmp_path):
    with pytest.raises(InputError, match=r"data.micro_batch_size=2 and data.tokens_per_batch=64 .* null"):
        data(tmp_path, micro_batch_size=2, tokens_per_batch=64)


def test_tokenised_once(tmp_path, monkeypatch):
    module = data(tmp_path)
    first = [row[0].tolist() for step in module.train_dataloader() for row in step]
    assert len(list(tmp_path.glob("tokens-*.safetensors"))) == 1
    monkeypatch.setattr("amid.data.prompts.Encoder.example", lambda *_: pytest.fail("tokenised again"))
    assert first == [row[0].tolist() for step in data(tmp_path).train_dataloader() for row in step]


def test_the_cached_tokens_do_not_depend_on_further_fields(tmp_path):
    """A key of the cache stays what it was before the rows had any."""
    rows = corpus("train", size=100)
    for train in (rows, [replace(row, fields={}) for row in rows]):
        example_data = data(tmp_path)
        example_data._train = train
        assert len(example_data.train_tokens) == 100
    assert len(list(tmp_path.glob("tokens-*.safetensors"))) == 1


@pytest.mark.parametrize("place", [0, 100, 0.5, -1])
def test_damaged_token_ids_are_made_anew(tmp_path, capsys, place):
    rows = [Example(f"say {i}", "", (f"{i} " * i,)) for i in range(1, 9)]

    def tokens():
        module = data(tmp_path)
        module._train = rows
        return module.train_tokens.fingerprint

    whole = tokens()
    (file,) = tmp_path.glob("tokens-*.safetensors")
    content = bytearray(file.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    for damaged in (content, content[: len(content) // 2], b""):
        file.write_bytes(damaged)
        assert tokens() == whole
        assert capsys.readouterr().out == f"{file} is damaged: made again\n"
    assert tokens() == whole
    assert capsys.readouterr().out == ""


def test_what_the_limits_cut_is_said_once_also_from_the_cache(tmp_path, monkeypatch, capsys):
    long = "word " * 50
    rows = [Example("short", "", ("short",)), Example(long, "", ("short",)), Example("a", long, (long,))]

    def said(train, valid, splits=("train", "valid", "test")):
        module = InstructionData(
            tokenizer=tokenizer(),
            train=train,
            valid=valid,
            test={"mine": rows, "none": None},
            template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
            max_prompt_length=20,
            max_length=30,
            cache_dir=str(tmp_path),
        )
        module.announce_cuts(splits)
        return capsys.readouterr().out

    line = (
        "Cut to data.max_prompt_length=20: 4 of 7 prompts of data.train, 2 of 3 prompts of data.test.mine; "
        "to data.max_length=30: 2 of 7 responses of data.train\n"
    )
    assert said([*rows, *rows, rows[0]], rows[:1]) == line
    assert (
        said(None, None, ["test"]) == "Cut to data.max_prompt_length=20: 2 of 3 prompts of data.test.mine\n"
    )
    assert said(rows[:1], rows[:1], ["train", "valid"]) == ""
    monkeypatch.setattr("amid.data.prompts.Encoder.example", lambda *_: pytest.fail("tokenised again"))
    assert said([*rows, *rows, rows[0]], rows[:1]) == line


def test_rows_left_out_empty_prompts_and_what_is_taken_are_said_once(tmp_path, jsonl, capsys):
    usual = {"instruction": "a", "output": "b"}
    files = [
        jsonl(usual, {"prompt": "a", "completion": "b"}, usual | {"output": ""}, name="train.jsonl"),
        jsonl(usual | {"instruction": " "}, usual | {"output": [" "]}, name="valid.jsonl"),
        jsonl(usual, usual | {"output": []}, name="test.jsonl"),
    ]
    train, valid, test = map(str, files)
    module = InstructionData(
        tokenizer(),
        train,
        valid,
        {"mine": test},
        Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        cache_dir=str(tmp_path),
    )
    module.announce_cuts()
    assert capsys.readouterr().out.splitlines() == [
        f"Rows: 3 of data.train from {train}; 2 of data.valid from {valid}; 2 of data.test.mine from {test}",
        "Read as instruction, input and output: 2 of 3 rows of data.train, 2 of 2 rows of data.valid, "
        "2 of 2 rows of data.test.mine",
        "Read as prompt and completion (instruction and output): 1 of 3 rows of data.train",
        "Left out, as their output is empty: 1 of 3 rows of data.train, 1 of 2 rows of data.valid, "
        "1 of 2 rows of data.test.mine",
        "Prompts of the template alone, as instruction and input are empty: 1 of 1 rows of data.valid",
    ]


def test_a_row_that_just_fits_is_not_cut(tmp_path, capsys):
    row = Example("say this word again", "", ("a word",))
    template = Template(TEMPLATE, TEMPLATE_WITH_INPUT)
    ids, n_prompt, *_ = Encoder(tokenizer(), template, 30, 60).example(row)
    for less_prompt, less, said in ((0, 0, ""), (1, 0, "1 of 1 prompts"), (0, 1, "1 of 1 responses")):
        limits = {"max_prompt_length": n_prompt - less_prompt, "max_length": len(ids) - less}
        InstructionData(
            tokenizer(), [row], [row], {}, template, cache_dir=str(tmp_path), **limits
        ).announce_cuts(["train"])
        out = capsys.readouterr().out
        assert said in out
        assert bool(out) == bool(said)


def test_pad_equal_to_eos_keeps_the_eos_label(tmp_path):
    module = data(tmp_path)
    module.tokenizer.pad_token = module.tokenizer.eos_token
    batch = module.micro_batches(next(iter(module.train_dataloader())))[0]
    eos = module.tokenizer.eos_token_id
    assert (batch["labels"] == eos).sum() == len(batch["labels"])


@pytest.mark.parametrize(
    "name", ["batch_size", "micro_batch_size", "tokens_per_batch", "valid_prompts", "test_prompts"]
)
def test_numbers_that_are_not_positive(tmp_path, name):
    with pytest.raises(InputError, match=f"data.{name}=0 must be a whole number from 1"):
        data(tmp_path, **{name: 0})


def test_a_set_whose_name_is_no_file_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.test=.*'a/b' is none: use letters"):
        data(tmp_path, test={"a/b": "any.jsonl"})


def test_examples_of_the_sets(tmp_path):
    module = data(tmp_path, test_prompts=3)
    assert isinstance(module.valid_examples[0], Example)
    assert len(module.test_examples["open"]) == 3


def test_an_order_begun_before_its_epoch_is_chosen_is_that_of_the_epoch():
    """As when a run goes on: the loader is begun first, then told its epoch."""
    sampler = Batches(list(range(40)), 4, seed=3)
    first = list(sampler)
    resumed = iter(sampler)
    sampler.set_epoch(1)
    assert list(resumed) == list(sampler) != first


def test_an_epoch_that_is_begun_within_lacks_its_first_batches_alone():
    whole, within = Batches(list(range(40)), 4, seed=3), Batches(list(range(40)), 4, 3, begins_at=(1, 6))
    for epoch in range(3):
        whole.set_epoch(epoch)
        within.set_epoch(epoch)
        assert len(within) == 10
        assert list(within) == list(whole)[6 if epoch == 1 else 0 :]


def test_many_token_ids_are_held_in_a_file(tmp_path, monkeypatch):
    sequences = [
        ([1, 2, 3, 4, 5], 2, None),
        ([6], 1, None),
        ([7, 8, 9], 1, [False, True, False]),
        ([], 0, None),
    ]
    monkeypatch.setattr("amid.data.tokens._IN_MEMORY", 4)
    for part in (sequences, sequences[:2], sequences[:1], []):
        stored, held = Tokens.of_turns(part, tmp_path), Tokens.of_turns(part)
        assert stored.fingerprint == held.fingerprint
        assert (stored.counts is None) == (len(part) < 3)
        for name, tensor in held.tensors.items():
            assert torch.equal(stored.tensors[name], tensor)
            assert stored.tensors[name].dtype == tensor.dtype
    assert held.ids.dtype == torch.int32
    whole = Tokens.of_turns(sequences, tmp_path)
    assert [(row.ids.tolist(), row.n_prompt) for row in whole] == [(ids, n) for ids, n, _ in sequences]
    assert whole.counts.tolist() == [False, False, True, True, True, False, False, True, False]
    assert not any(tmp_path.iterdir())
