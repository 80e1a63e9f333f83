"""Labels of generated text, and steps on the student's text."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CPU, EOS, TOKENS, data_of, fitted, network
from torch.nn import functional as F

from amid.data.prompts import IGNORE
from amid.data.tokens import Tokens, counted_positions
from amid.errors import InputError
from amid.generation.sampling import Sampling
from amid.losses import KL, CrossEntropy, Objective, WeightedSum
from amid.models.source import ModelSource
from amid.teacher.signals import CachedTeacher, LiveTeacher, PartlyCachedTeacher
from amid.teacher.supply import TeacherSupply
from amid.text import AdaptiveText, DataText, StudentText, on_student_text, prompts_of
from amid.text import student as student_text
from amid.text.base import seed_of


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([None, 1, 2]))
def test_labels_are_the_answers_with_eos_also_where_padding_is_eos(tmp_path_factory, seed, n, at_once):
    data = data_of(tmp_path_factory.getbasetemp(), pad=TOKENS.eos_token, micro_batch_size=at_once)
    assert data.tokenizer.pad_token_id == EOS
    rng = random.Random(seed)
    prompts = [[rng.randrange(2, 900) for _ in range(rng.randrange(1, 9))] for _ in range(n)]
    drawn = []

    def answer(sampling, prompts, seed):
        drawn[:] = sampling.token_ids(MODEL, data.tokenizer, prompts, seed, vocabulary=len(TOKENS))
        return [ids for (ids,) in drawn]

    rows = StudentText(max_new_tokens=5, seed=seed).rows(prompts, 0, 1, answer)
    batches = data.micro_batches(rows)
    assert prompts_of(rows) == prompts
    labels = []
    for batch in batches:
        for i in range(len(batch["rows"])):
            counted = batch["labels"][i] != IGNORE
            assert torch.equal(batch["labels"][i][counted], batch["input_ids"][i][counted])
            assert counted.sum() == batch["attention_mask"][i].sum() - counted.long().argmax()
            labels.append(batch["labels"][i][counted].tolist())
    assert sorted(labels) == sorted(ids for (ids,) in drawn)
    for ids in labels:
        assert (ids.count(EOS), ids[-1] == EOS) in ((1, True), (0, False))
        assert len(ids) == 5 or ids[-1] == EOS


MODEL = network(eos_bias=5.0)


@pytest.mark.parametrize(
    "which", [StudentText(3, labels="unshifted"), AdaptiveText(3, 1.0, labels="unshifted")]
)
def test_unshifted_labels_count_what_is_predicted_after_each_token_of_an_answer(tmp_path, which):
    """As where the label of a token stands at the token itself, and EOS is dropped."""
    answers = {(1, 2): [7, 8, EOS], (3,): [7, 8, 9], (4,): [EOS], (5, 6): [9, EOS]}

    def answers_of(sampling, prompts, seed):
        return [answers[tuple(prompt)] for prompt in prompts]

    answers_of.end = EOS
    rows = which.rows([list(prompt) for prompt in answers], 0, 1, answers_of)
    (batch,) = data_of(tmp_path, micro_batch_size=None).micro_batches(rows)
    found = {}
    for ids, counted in zip(batch["input_ids"], counted_positions(batch), strict=True):
        prompt = tuple(ids[:2].tolist()) if int(ids[0]) in (1, 5) else (int(ids[0]),)
        found[prompt] = [ids[: i + 1].tolist() for i in counted.nonzero().flatten().tolist()]
    assert found == {  # from which tokens a counted one is predicted
        (1, 2): [[1, 2, 7], [1, 2, 7, 8]],
        (3,): [[3, 7], [3, 7, 8], [3, 7, 8, 9]],
        (4,): [],
        (5, 6): [[5, 6, 9]],
    }
    with pytest.raises(InputError, match=r"text.labels=none must be shifted or unshifted"):
        type(which)(3, labels="none")


@pytest.mark.parametrize("fused", [True, False])
def test_the_mean_of_micro_batches_means_is_the_one_computed_by_hand(tmp_path, fused):
    given = {"plain_text": ["Name a brave dog. " * 30], "batch_size": 4, "micro_batch_size": 3}
    data = data_of(tmp_path, size=4, mean="micro_batch", **given)
    (step,) = data.train_dataloader()
    by_hand = network()

    def mean_of_means(batches):
        means = []
        for batch in batches:
            logits = by_hand(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            means.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()))
        assert len(means) == 2
        return sum(means) / 2

    expected = sum(mean_of_means(data.micro_batches(rows)) for rows in (step, data.plain_batch(0)))
    expected.backward()
    objective = CrossEntropy(fused=fused)
    module, logged = fitted(data, DataText(), network(), objective=objective)
    assert logged["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(module.student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-4, atol=1e-6)
    data.mean = "step"
    _, logged = fitted(data, DataText(), network(), objective=objective)
    assert logged["train/loss"] != pytest.approx(expected.item(), rel=1e-3)


def test_prompts_are_those_of_the_data(tmp_path):
    data = data_of(tmp_path)
    prompts = [prompt for step in data.train_dataloader() for prompt in prompts_of(step)]
    assert sorted(prompts) == sorted(data.encoder.prompt(example) for example in data.train_examples)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_on_student_text_is_one_on_the_same_text_given_as_data(tmp_path, precision):
    data = data_of(tmp_path, size=8)
    asked = []
    on_policy = StudentText(max_new_tokens=7, seed=2)
    rows = on_policy.rows
    on_policy.rows = lambda **given: asked.append((given["prompts"], rows(**given))) or asked[-1][1]
    before = network().state_dict()
    module, logged = fitted(data, on_policy, network(), precision=precision)
    ((prompts, written),) = asked
    assert logged["train/student_text"] == 1
    lengths = [len(ids) - n_prompt for ids, n_prompt, *_ in written]
    assert logged["train/student_text_tokens"] == pytest.approx(sum(lengths) / 8)
    assert module.response_tokens == sum(lengths)
    assert all(weight.grad is None for weight in module.student.parameters())  # no memory while it answers

    drawn = on_policy.sampling.token_ids  # in eval mode, by the student before the step
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
        again = drawn(network(), data.tokenizer, prompts, seed_of(2, 0), vocabulary=len(TOKENS))
    assert [ids.tolist() for ids, *_ in written] == [p + a for p, (a,) in zip(prompts, again, strict=True)]

    data.train_on(Tokens.of((ids.tolist(), n_prompt) for ids, n_prompt, *_ in written))
    other, _ = fitted(data, DataText(), network(), precision=precision)
    mine, theirs = module.student.state_dict(), other.student.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value)
    moved = [name for name, value in before.items() if not torch.equal(value, mine[name])]
    assert moved == list(before)


def test_the_student_answers_without_dropout_and_then_trains_on(tmp_path, monkeypatch):
    student = network(attention_dropout=0.5)
    modes = []
    sampled = Sampling.token_ids

    def watched(self, model, *rest, **further):
        modes[:] = [model.training]
        return sampled(self, model, *rest, **further)

    student.model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    monkeypatch.setattr(Sampling, "token_ids", watched)
    fitted(data_of(tmp_path, size=8), StudentText(max_new_tokens=3), student)
    before, *answering = modes[:-3]
    assert before
    assert answering
    assert not any(answering)
    assert modes[-3:] == [True] * 3, "three micro-batches"


def test_no_cross_entropy_is_taken_on_student_text(tmp_path):
    distillation = Objective(KL())
    both = WeightedSum([(1.0, CrossEntropy()), (0.5, distillation)], fused=False)
    part = on_student_text(both)
    assert part.terms == [(0.5, distillation)]
    assert not part.uses_fused
    assert on_student_text(distillation) is distillation
    assert on_student_text(CrossEntropy()) is None
    assert on_student_text(WeightedSum([(1.0, CrossEntropy())])) is None
    nested = on_student_text(WeightedSum([(2.0, both), (1.0, CrossEntropy())]))
    assert not nested.needs_labels

    data = data_of(tmp_path, size=8)
    mine, _ = fitted(data, StudentText(max_new_tokens=7), network(), objective=both)
    half = WeightedSum([(0.5, distillation)])
    theirs, _ = fitted(data, StudentText(max_new_tokens=7), network(), objective=half)
    for a, b in zip(mine.student.parameters(), theirs.student.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    on_data, _ = fitted(data, DataText(), network(), objective=both)
    without, _ = fitted(data, DataText(), network(), objective=half)
    assert not torch.allclose(on_data.student.lm_head.weight, without.student.lm_head.weight)


def test_the_teacher_reads_rows_of_the_data_and_runs_on_others(saved, tmp_path):
    data = data_of(tmp_path)

    def supplied(mode, with_student_text=True):
        return TeacherSupply(mode, cache_dir=str(data.cache_dir), multirun=True).teacher(
            ModelSource(path=str(saved)),
            data.tokenizer,
            [data.train_tokens, data.valid_tokens],
            CPU["fabric"],
            CPU["precision"],
            passes=9.0,
            with_student_text=with_student_text,
        )

    assert isinstance(supplied("auto"), LiveTeacher)
    assert not list(data.cache_dir.glob("teacher-*"))
    partly, live = supplied("cached"), supplied("live")
    assert isinstance(partly, PartlyCachedTeacher)
    assert isinstance(supplied("auto", with_student_text=False), CachedTeacher)
    assert partly.vocabulary == live.vocabulary
    calls = []
    partly.live.model.register_forward_pre_hook(lambda *_: calls.append("body"))
    partly.live.model.model.register_forward_pre_hook(lambda *_: calls.append("body"))
    mixed = StudentText(max_new_tokens=7, share=0.5, seed=4)
    mine, _ = fitted(data, mixed, network(), teacher=partly, steps=6)
    on_student = [student_text._uniform(4, step) < 0.5 for step in range(6)]
    assert {True, False} == set(on_student)
    assert len(calls) == 3 * sum(on_student), "three micro-batches in each of these steps"
    theirs, _ = fitted(data, mixed, network(), teacher=live, steps=6)
    for a, b in zip(mine.student.parameters(), theirs.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
