"""Packed rows have the loss and the gradients of padded ones, whatever the teacher, the text and the cuts."""

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TOKENS, data_of, fitted, network

from amid.data import Example, InstructionData, Template
from amid.data.examples import Conversation
from amid.data.prompts import IGNORE
from amid.data.tokens import NO_ROW, Row, cut, pack
from amid.losses import KL, AlphaBeta, AlphaMixture, CrossEntropy, MiniLLM, Objective, WeightedSum
from amid.models.source import ModelSource
from amid.teacher.signals import LiveTeacher
from amid.teacher.supply import TeacherSupply
from amid.text import DataText, StudentText, prompts_of
from amid.training.counted_loss import CountedLoss


def test_a_packed_batch_is_its_sequences_one_after_the_other():
    lists = [([5, 6, 7, 8], 2, 3), ([5, 9], 1, 1), ([4, 7, 2], 0, 0)]
    rows = [Row(torch.tensor(ids), n_prompt, number) for ids, n_prompt, number in lists]
    batch = pack(rows)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 5, 9, 4, 7, 2]],
        "attention_mask": [[1] * 9],
        "labels": [[IGNORE, IGNORE, 7, 8, IGNORE, 9, IGNORE, 7, 2]],
        "position_ids": [[0, 1, 2, 3, 0, 1, 0, 1, 2]],
        "rows": [3, 1, 0],
    }


@settings(max_examples=40)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=20), st.integers(1, 80), st.booleans())
def test_packed_batches_hold_every_row_once_within_the_limit(lengths, limit, in_tokens):
    rows = [Row(torch.tensor([100 + i, *range(1, n)]), 1, i) for i, n in enumerate(lengths)]
    limits = {"tokens_per_batch" if in_tokens else "micro_batch_size": limit}
    parts = cut(rows, **limits, packing=True)
    for part in parts:
        assert len(part) == 1 or (sum(len(row.ids) for row in part) if in_tokens else len(part)) <= limit
    assert sorted(row.number for part in parts for row in part) == list(range(len(rows)))
    assert len(parts) <= len(cut(rows, **limits))


def step_of(data, objective, teacher, rows):
    """The loss of a step over `rows`, its sums and its gradients, added up over the micro-batches."""
    student, loss = network(), torch.zeros(())
    sums = {}
    counted_loss = CountedLoss(student, teacher, None)
    for batch in data.micro_batches(rows):
        part, stats = counted_loss(objective, batch, 100.0, return_stats=True, cross_entropy=True)
        part.backward()
        loss += part.detach()
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in stats.items()}
    return loss, sums, {name: weight.grad for name, weight in student.named_parameters()}


def assert_same_step(tmp_path, objective, teacher, rows, **limits):
    padded, packed = (data_of(tmp_path, packing=packing, **limits) for packing in (False, True))
    loss, sums, gradients = step_of(padded, objective, teacher, rows)
    found_loss, found_sums, found_gradients = step_of(packed, objective, teacher, rows)
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=1e-7)
    assert found_sums == pytest.approx(sums, rel=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


AMID = Objective(AlphaBeta(0.2, 0.7), AlphaMixture(-3.0, 0.3))
OBJECTIVES = {
    "amid": AMID,
    "on_logits": Objective(KL(), fused=False),
    "with_cross_entropy": WeightedSum([(1.0, AMID), (0.5, CrossEntropy())]),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_loss_and_gradients_of_packed_rows_with_a_live_teacher(objective, tmp_path):
    rows = list(data_of(tmp_path).train_tokens)[:9]
    limits = {"micro_batch_size": None, "tokens_per_batch": 70}
    assert_same_step(tmp_path, objective, LiveTeacher(network(seed=5)), rows, **limits)


def test_loss_and_gradients_of_packed_rows_with_a_cached_teacher(tmp_path):
    network(seed=5).save_pretrained(tmp_path / "teacher")
    TOKENS.save_pretrained(tmp_path / "teacher")
    data, source = data_of(tmp_path), ModelSource(path=str(tmp_path / "teacher"))
    fabric = L.Fabric(accelerator="cpu", devices=1)
    supply = TeacherSupply("cached", cache_dir=str(tmp_path / "cache"), tokens_per_forward=200)
    sets = [data.train_tokens, data.valid_tokens]
    teacher = supply.teacher(source, TOKENS, sets, fabric, "32-true", 1.0)
    rows = [data.train_tokens[i] for i in (7, 3, 40, 11, 0)] + [data.valid_tokens[2]]
    assert_same_step(tmp_path, AMID, teacher, rows)
    partly = supply.teacher(source, TOKENS, sets, fabric, "32-true", 1.0, with_student_text=True)
    assert_same_step(tmp_path, AMID, partly, [row._replace(number=NO_ROW) for row in rows])


def test_loss_and_gradients_of_packed_samples(tmp_path):
    torch.manual_seed(1)
    rows = [
        row._replace(number=NO_ROW, sampling=torch.randn(len(row.ids) - row.n_prompt, 2))
        for row in list(data_of(tmp_path).train_tokens)[:7]
    ]
    assert_same_step(tmp_path, MiniLLM(), LiveTeacher(network(seed=5)), rows)


def test_the_answers_of_a_conversation_count_as_rows_of_their_own(tmp_path):
    roles = ["user", "assistant"] * 3
    talks = [[f"say {word}", f"{word} {word}"] * 3 for word in ("moon", "tree")]
    messages = [tuple({"role": r, "content": c} for r, c in zip(roles, talk, strict=True)) for talk in talks]
    rows = [Example("", "", ("x",), conversation=Conversation(of)) for of in messages]
    data = InstructionData(
        TOKENS,
        rows,
        rows[:1],
        {},
        Template("{instruction}:", "{input}{instruction}"),
        cache_dir=str(tmp_path),
        max_length=300,
    )
    tokens = data.train_tokens
    apart = []
    for ids, _, _, counts, _ in tokens:
        edges = [i for i in range(1, len(ids)) if counts[i] != counts[i - 1]] + [len(ids)]
        apart += [Row(ids[:end], begin) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    assert len(apart) == 6
    live = LiveTeacher(network(seed=5))
    loss, sums, gradients = step_of(data, AMID, live, apart)
    network(seed=5).save_pretrained(tmp_path / "teacher")
    TOKENS.save_pretrained(tmp_path / "teacher")
    supply = TeacherSupply("cached", cache_dir=str(tmp_path / "cache"), tokens_per_forward=200)
    fabric = L.Fabric(accelerator="cpu", devices=1)
    source, sets = ModelSource(path=str(tmp_path / "teacher")), [tokens, data.valid_tokens]
    for teacher in (live, supply.teacher(source, TOKENS, sets, fabric, "32-true", 1.0)):
        found_loss, found_sums, found = step_of(data, AMID, teacher, list(tokens))
        torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=1e-7)
        assert found_sums == pytest.approx(sums, rel=1e-4)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert sum(tokens.counted) == sum(len(row.ids) - row.n_prompt for row in apart)


def test_a_training_on_student_text_is_the_same_with_packed_rows(tmp_path):
    students, logged = [], []
    for packing in (False, True):
        data = data_of(tmp_path, packing=packing, plain_text="responses")
        prompts = [prompt for rows in data.train_dataloader() for prompt in prompts_of(rows)]
        assert sorted(prompts) == sorted(data.encoder.prompt(example) for example in data.train_examples)
        text = StudentText(max_new_tokens=5, share=0.5, seed=2)
        module, measures = fitted(data, text, network(), steps=4, objective=AMID)
        students.append(module.student.state_dict())
        logged.append(measures)
    for name, value in students[0].items():
        torch.testing.assert_close(students[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert logged[1].pop("train/padding") == 0
    del logged[0]["train/padding"]
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)


def test_validation_is_the_same_with_packed_rows(tmp_path):
    found = []
    for packing in (False, True):
        data = data_of(tmp_path, packing=packing)
        module, _ = fitted(data, DataText(), network(), objective=AMID, lr=0.0)
        module.log = lambda name, value, **_: None
        module.on_validation_start()
        for number, rows in enumerate(data.val_dataloader()):
            module.validation_step(rows, number)
        module.on_validation_epoch_end()
        found.append(module.validation)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
