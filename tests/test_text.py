import csv
import io
import json
import multiprocessing
import random
import shutil

import lightning as L
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from amid import results, text
from amid.cli import main
from amid.data import InstructionData
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, corpus, tokenizer
from amid.data.datamodule import NO_ROW, Tokens
from amid.data.plain_text import packed
from amid.data.prompts import IGNORE, Template
from amid.data.sources import load_documents
from amid.errors import InputError
from amid.generation import MixedAnswer, Sampling
from amid.losses import KL, CrossEntropy, MiniLLM, Objective, WeightedSum
from amid.models import ModelSource
from amid.module import DistillationModule
from amid.teacher import CachedTeacher, LiveTeacher, PartlyCachedTeacher, TeacherSupply
from amid.text import (
    AdaptiveText,
    DataText,
    RolloutText,
    StudentText,
    TeacherText,
    on_student_text,
    prompts_of,
)

FORK = multiprocessing.get_context("fork")
TOKENS = tokenizer()
EOS = TOKENS.eos_token_id
CPU = {"fabric": L.Fabric(accelerator="cpu", devices=1), "precision": "32-true"}


def network(seed=0, eos_bias=0.0, **fields):
    """A small model of random weights; `eos_bias` is added to the logit of EOS."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=1024, initializer_range=0.3, **sizes, **fields)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig()

    def more_eos(module, inputs, logits):
        logits[..., EOS] += eos_bias
        return logits

    if eos_bias:
        model.lm_head.register_forward_hook(more_eos)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a small teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    network().save_pretrained(folder)
    TOKENS.save_pretrained(folder)
    return folder


def data_of(tmp_path, size=60, pad=None, **given):
    tokens = tokenizer()
    if pad is not None:
        tokens.pad_token = pad
    return InstructionData(
        tokenizer=tokens,
        train=corpus("train", size=size),
        valid=corpus("valid", size=6),
        test={},
        template=Template(TEMPLATE, TEMPLATE_WITH_INPUT),
        max_prompt_length=32,
        max_length=60,
        cache_dir=str(tmp_path / "cache"),
        **{"batch_size": 8, "micro_batch_size": 3, "seed": 1, **given},
    )


def fitted(data, which, student, teacher=None, objective=None, steps=1, lr=0.1, **given):
    """A module after some steps of gradient descent."""
    which.begin(data.train_tokens)
    module = DistillationModule(
        student=student,
        teacher=teacher or LiveTeacher(network(seed=5)),
        objective=objective or Objective(KL()),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        scheduler=lambda optimizer, n: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        clip_norm=None,
        tokenizer=data.tokenizer,
        valid_prompts=[[5, 6]],
        valid_references=[["a"]],
        valid_metric=None,
        metrics={},
        sampling=Sampling(max_new_tokens=2),
        log_every_n_steps=1,
        micro_batches=data.micro_batches,
        text=which,
        **{key: value for key, value in given.items() if key != "precision"},
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        precision=given.get("precision", "32-true"),
    )
    trainer.fit(module, train_dataloaders=data.train_dataloader())
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def answer_with(*ids):
    """A student that always gives the same answer, and counts how often it is asked."""

    def answer(sampling, prompts, seed):
        answer.calls += 1
        return [list(ids) for _ in prompts]

    answer.calls = 0
    return answer


# Which text a step is taken on


@settings(max_examples=50)
@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1, max_size=9),
    st.integers(),
)
def test_the_coin_depends_on_seed_and_step_only(seed, step, prompts, noise):
    mixed = [StudentText(9, share=0.5, seed=seed) for _ in range(2)]
    first = mixed[0].rows([[1]], step, 10**7, answer_with(EOS))
    random.seed(noise)
    torch.manual_seed(noise % 2**32)
    for earlier in range(3):
        mixed[1].rows([[2]], earlier, 10**7, answer_with(EOS))
    again = mixed[1].rows(prompts, step, 10**7, answer_with(EOS))
    assert (first is None) == (again is None)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_share_of_steps(share):
    mixed, answer = StudentText(9, share=share, seed=3), answer_with(EOS)
    rows = [mixed.rows([[1], [2]], step, 2000, answer) for step in range(2000)]
    assert answer.calls == sum(part is not None for part in rows)
    assert abs(answer.calls / 2000 - share) <= 4 * (share * (1 - share) / 2000) ** 0.5
    assert DataText().rows([[1]], 0, 1, answer) is None


def test_every_step_has_a_seed_of_its_own_and_rows_have_no_number():
    seeds = []

    def answer(sampling, prompts, seed):
        seeds.append(seed)
        return [[7, EOS] for _ in prompts]

    on_policy = StudentText(9, seed=3)
    for step in range(100):
        rows = on_policy.rows([[1, 2], [3]], step, 100, answer)
    assert len(set(seeds)) == 100
    assert [(ids.tolist(), n_prompt, number) for ids, n_prompt, number in rows] == [
        ([1, 2, 7, EOS], 2, NO_ROW),
        ([3, 7, EOS], 1, NO_ROW),
    ]


@pytest.mark.parametrize(
    ("threshold", "full", "step", "u", "expected"),
    [  # of 100 steps
        (0.0, False, 0, 0.0, "data"),
        (0.5, False, 0, 0.49, "student"),
        (0.5, False, 0, 0.5, "data"),
        (0.5, False, 80, 0.49, "student"),
        (0.5, True, 0, 0.49, "student"),
        (0.5, True, 80, 0.09, "student"),
        (0.5, True, 80, 0.11, "replay"),
        (0.5, True, 80, 0.49, "replay"),
        (0.5, True, 80, 0.51, "data"),
        (1.0, True, 0, 0.999, "student"),
        (1.0, True, 99, 0.5, "replay"),
    ],
)
def test_distillm_chooses_data_student_or_replay(monkeypatch, threshold, full, step, u, expected):
    monkeypatch.setattr(text, "_uniform", lambda seed, step: u)
    adaptive = AdaptiveText(9, threshold=threshold, capacity=4)
    adaptive.buffer.extend((torch.tensor([9, i]), 1, NO_ROW) for i in range(4 if full else 3))
    before, answer = list(adaptive.buffer), answer_with(7, EOS)
    rows = adaptive.rows([[1], [2]], step, 100, answer)
    assert answer.calls == (expected == "student")
    if expected == "data":
        assert rows is None
    elif expected == "student":
        assert [ids.tolist() for ids, _, _ in rows] == [[1, 7, EOS], [2, 7, EOS]]
        assert list(adaptive.buffer) == (before + rows)[-4:]
    else:
        assert len(rows) == 2
        assert all(any(row is kept for kept in before) for row in rows)
        assert rows[0] is not rows[1]
    if expected != "student":
        assert list(adaptive.buffer) == before


def test_the_threshold_rises_when_validation_is_not_better_than_its_reference():
    adaptive = AdaptiveText(9, threshold=0.8, increase=0.1, tolerance=0.1)
    table = [  # cross-entropy, threshold and reference after it
        (2.0, 0.8, 2.0),  # before the training
        (1.5, 0.8, 2.0),
        (2.05, 0.8, 2.0),
        (2.1, 0.9, 2.1),
        (2.15, 0.9, 2.1),
        (1.0, 0.9, 2.1),
        (2.5, 1.0, 2.5),
        (9.0, 1.0, 9.0),
        (9.05, 1.0, 9.0),
    ]
    for cross_entropy, threshold, reference in table:
        adaptive.validated(cross_entropy)
        assert adaptive.threshold == pytest.approx(threshold)
        assert adaptive.reference == reference


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), max_size=12), st.integers(1, 5))
def test_the_buffer_keeps_the_latest_rows_and_outlives_a_checkpoint(steps, capacity):
    adaptive = AdaptiveText(9, threshold=1.0, capacity=capacity)
    adaptive.validated(2.0)
    written = []
    for step, prompts in enumerate(steps):
        rows = adaptive.rows([[p] for p in prompts], step, 10**9, answer_with(step, EOS))
        written += [ids.tolist() for ids, _, _ in rows]
    assert [ids.tolist() for ids, _, _ in adaptive.buffer] == written[-capacity:]
    file = io.BytesIO()
    torch.save(adaptive.state(), file)
    file.seek(0)
    other = AdaptiveText(9, threshold=0.3, capacity=capacity)
    other.load_state(torch.load(file, weights_only=True))
    assert (other.threshold, other.reference) == (1.0, 2.0)
    assert [(ids.tolist(), n, number) for ids, n, number in other.buffer] == [
        (ids.tolist(), n, number) for ids, n, number in adaptive.buffer
    ]
    replayed = [part.rows([[1], [2]], 10**9, 10**9, answer_with(1)) for part in (adaptive, other)]
    mine, theirs = [[ids.tolist() for ids, _, _ in rows] for rows in replayed]
    assert mine == theirs


def one_of_two_devices(rank, file, answers):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    adaptive = AdaptiveText(9, threshold=0.7, capacity=6, seed=1)
    steps = []
    for step in range(30):
        rows = adaptive.rows([[rank], [rank]], step, 30, answer_with(step, EOS))
        steps.append(None if rows is None else [ids.tolist() for ids, _, _ in rows])
    answers.put((rank, steps, [ids.tolist() for ids, _, _ in adaptive.buffer]))
    torch.distributed.destroy_process_group()


def test_devices_draw_the_same_coin_and_share_the_buffer(tmp_path):
    answers = FORK.Queue()
    processes = [
        FORK.Process(target=one_of_two_devices, args=(rank, tmp_path / "store", answers)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    (_, first, mine), (_, second, theirs) = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert mine == theirs
    assert {row[0] for row in mine} == {0, 1}
    assert [part is None for part in first] == [part is None for part in second]
    replays = [
        pair for step, pair in enumerate(zip(first, second, strict=True)) if pair[0] and pair[0][0][1] != step
    ]
    assert any(a != b for a, b in replays)


# Labels of generated text


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
    assert sorted(prompts_of(batches)) == sorted(prompts)
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


def test_prompts_are_those_of_the_data(tmp_path):
    data = data_of(tmp_path)
    prompts = [prompt for step in data.train_dataloader() for prompt in prompts_of(step)]
    assert sorted(prompts) == sorted(data.encoder.prompt(example) for example in data.train_examples)


# Steps on the student's text


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_on_student_text_is_one_on_the_same_text_given_as_data(tmp_path, precision):
    data = data_of(tmp_path, size=8)
    asked = []
    on_policy = StudentText(max_new_tokens=7, seed=2)
    rows = on_policy.rows
    on_policy.rows = lambda *given: asked.append((given[0], rows(*given))) or asked[-1][1]
    before = network().state_dict()
    module, logged = fitted(data, on_policy, network(), precision=precision)
    ((prompts, written),) = asked
    assert logged["train/student_text"] == 1
    lengths = [len(ids) - n_prompt for ids, n_prompt, _ in written]
    assert logged["train/student_text_tokens"] == pytest.approx(sum(lengths) / 8)
    assert module.response_tokens == sum(lengths)

    drawn = on_policy.sampling.token_ids  # in eval mode, by the student before the step
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
        again = drawn(network(), data.tokenizer, prompts, text._seed(2, 0), vocabulary=len(TOKENS))
    assert [ids.tolist() for ids, _, _ in written] == [p + a for p, (a,) in zip(prompts, again, strict=True)]

    data.train_on(Tokens.of((ids.tolist(), n_prompt) for ids, n_prompt, _ in written))
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
    on_student = [text._uniform(4, step) < 0.5 for step in range(6)]
    assert {True, False} == set(on_student)
    assert len(calls) == 3 * sum(on_student), "three micro-batches in each of these steps"
    theirs, _ = fitted(data, mixed, network(), teacher=live, steps=6)
    for a, b in zip(mine.student.parameters(), theirs.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# Samples of student and teacher, used for several steps


class Models:
    """A student and a teacher whose answers count the calls; log q̃ names the prompt."""

    def __init__(self):
        self.asked = []

    def mixed(self, sampling, prompts, seed, teacher_share):
        self.asked.append((prompts, seed, teacher_share))
        zeros = torch.zeros(2)
        return [MixedAnswer([len(self.asked), EOS], zeros - prompt[0], zeros, zeros) for prompt in prompts]


def prompts_only(n):
    """Prompts of one token each, 1 to `n`, and responses that nobody asks for."""
    return Tokens.of(([i, 999, EOS], 1) for i in range(1, n + 1))


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(0, 99))
def test_a_sample_is_gone_through_in_batches_again_and_again(rows_per_step, batches, epochs, n, seed):
    def new():
        made = RolloutText(9, rows_per_step, batches, epochs, seed=seed)
        made.begin(prompts_only(n))
        return made

    rollouts, models, samples = new(), Models(), 3
    steps = [rollouts.rows([[0]], step, 10**6, models) for step in range(samples * batches * epochs)]
    assert len(models.asked) == samples
    assert len({seed for _, seed, _ in models.asked}) == samples
    assert all(len(rows) == rows_per_step for rows in steps)
    for number, (prompts, _, share) in enumerate(models.asked):
        assert share == 0.2
        for epoch in range(epochs):
            start = (number * epochs + epoch) * batches
            rows = [row for step in steps[start : start + batches] for row in step]
            assert sorted(ids.tolist() for ids, *_ in rows) == sorted([*p, number + 1, EOS] for p in prompts)
            for ids, n_prompt, number_of_row, sampling in rows:
                assert (n_prompt, number_of_row) == (1, NO_ROW)
                assert sampling.tolist() == [[-int(ids[0]), 0.0]] * 2
    taken = [prompt for prompts, *_ in models.asked for (prompt,) in prompts]
    turns = [sorted(taken[i : i + n]) for i in range(0, len(taken) // n * n, n)]
    assert turns == [list(range(1, n + 1))] * len(turns)

    for cut in range(1, len(steps)):
        before, after = new(), new()
        for step in range(cut):
            before.rows([[0]], step, 10**6, Models())
        file = io.BytesIO()
        torch.save(before.state(), file)
        file.seek(0)
        after.load_state(torch.load(file, weights_only=True))
        if cut % (batches * epochs):
            mine, theirs = after.rows([[0]], cut, 10**6, None), before.rows([[0]], cut, 10**6, None)
            assert [ids.tolist() for ids, *_ in mine] == [ids.tolist() for ids, *_ in theirs]
            assert all(torch.equal(a[3], b[3]) for a, b in zip(mine, theirs, strict=True))


def one_of_two_samplers(rank, file, answers):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    rollouts, models = RolloutText(9, 3, batches=2, epochs=2, seed=1), Models()
    rollouts.begin(prompts_only(50))
    steps = [rollouts.rows([[0]], step, 99, models) for step in range(4)]
    prompts = [[int(ids[0]) for ids, *_ in rows] for rows in steps]
    asked = [prompt for (prompt,) in models.asked[0][0]]
    answers.put((rank, prompts, asked, [ids.tolist() for ids, *_ in rollouts.sample]))
    torch.distributed.destroy_process_group()


def test_devices_share_a_sample_and_take_their_parts_of_each_batch(tmp_path):
    answers = FORK.Queue()
    processes = [
        FORK.Process(target=one_of_two_samplers, args=(rank, tmp_path / "store", answers))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    (_, first, mine, ours), (_, second, theirs, yours) = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert ours == yours
    assert (len(mine), len(theirs), len({*mine, *theirs})) == (6, 6, 12)
    for epoch in (slice(0, 2), slice(2, 4)):
        taken = [prompt for step in (*first[epoch], *second[epoch]) for prompt in step]
        assert sorted(taken) == sorted([*mine, *theirs])
    assert {len(step) for step in (*first, *second)} == {3}


@pytest.mark.parametrize("fused", [True, False])
def test_steps_on_a_sample_are_those_computed_by_hand(tmp_path, fused):
    """Two steps on the same sample: the second with the probabilities of the first student."""
    data = data_of(tmp_path, size=8)
    rollouts = RolloutText(5, 8, batches=1, epochs=2, teacher_share=0.3, seed=2)
    module, logged = fitted(
        data, rollouts, network(), LiveTeacher(network(seed=5)), MiniLLM(fused=fused), steps=2, lr=0.3
    )

    student, teacher = network(), network(seed=5)
    prompts = [data.encoder.prompt(example) for example in data.train_examples]
    answers = {
        tuple(prompt): drawn
        for prompt, drawn in zip(
            prompts,
            rollouts.sampling.mixed(student, teacher, TOKENS, prompts, text._seed(2, 0), 0.3),
            strict=True,
        )
    }
    assert {tuple(ids.tolist()) for ids, *_ in rollouts.sample} == {
        (*prompt, *drawn.tokens) for prompt, drawn in answers.items()
    }
    n = sum(len(drawn.tokens) for drawn in answers.values())
    assert module.response_tokens == 2 * n

    def loss():
        total, clipped = torch.zeros(()), 0
        for prompt, drawn in answers.items():
            ids = torch.tensor([[*prompt, *drawn.tokens]])
            log_q, log_p = (
                model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                for model in (student, teacher)
            )
            log_p = log_p.detach()
            total = total + (log_q.exp() * (log_q - log_p)).sum()
            reward = (drawn.log_teacher - drawn.log_student).tolist()
            for t, token in enumerate(drawn.tokens):
                later = reward[t + 1 :]
                to_go = sum(later) / len(later) if later else 0.0
                ratio = (log_q[t, token] - drawn.log_mixed[t]).exp()
                clipped += float((ratio.detach() - 1) * to_go) > 0.2 * abs(to_go)
                total = total - torch.minimum(ratio * to_go, ratio.clamp(0.8, 1.2) * to_go)
        return total / n, clipped / n

    for _ in range(2):
        value, clipped = loss()
        gradients = torch.autograd.grad(value, list(student.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(student.parameters(), gradients, strict=True):
                weight -= 0.3 * gradient
    assert logged["train/loss"] == pytest.approx(value.item(), rel=1e-4)
    assert logged["train/clipped"] == pytest.approx(clipped)
    assert clipped > 0
    for mine, theirs in zip(module.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_the_kl_of_sampled_sequences_falls(tmp_path):
    data = data_of(tmp_path, size=64)
    teacher = network(seed=5)
    prompts = [data.encoder.prompt(example) for example in data.train_examples]

    def kl_of_sequences(student):
        drawn = Sampling(6).mixed(student, teacher, TOKENS, prompts * 4, seed=0, teacher_share=0.0)
        return sum(float((answer.log_student - answer.log_teacher).sum()) for answer in drawn) / len(drawn)

    student = network()
    before = kl_of_sequences(student)
    rollouts = RolloutText(6, 16, batches=2, epochs=2)
    fitted(data, rollouts, student, LiveTeacher(teacher), MiniLLM(), steps=32, lr=1.0)
    assert kl_of_sequences(student) < 0.7 * before


def test_what_is_known_of_the_sampling_stands_beside_the_tokens(tmp_path):
    data = data_of(tmp_path, size=8, micro_batch_size=2)
    rollouts = RolloutText(5, 8, batches=1, epochs=1)
    rollouts.begin(data.train_tokens)
    answers = {}

    class Random:
        def mixed(self, sampling, prompts, seed, teacher_share):
            made = sampling.mixed(MODEL, network(seed=3), TOKENS, prompts, seed, teacher_share)
            answers.update({(*p, *a.tokens): a for p, a in zip(prompts, made, strict=True)})
            return made

    batches = data.micro_batches(rollouts.rows([], 0, 1, Random()))
    assert len(batches) == 4
    for batch in batches:
        for ids, mask, labels, sampling in zip(
            *(batch[name] for name in ("input_ids", "attention_mask", "labels", "sampling")), strict=True
        ):
            drawn = answers.pop(tuple(ids[mask == 1].tolist()))
            assert torch.equal(sampling[labels != IGNORE][:, 0], drawn.log_mixed)
            assert sampling[labels == IGNORE].abs().sum() == 0
    assert not answers
    (on_data, *_) = data.train_dataloader()
    assert "sampling" not in on_data[0]


# The teacher's text


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("amid.answers.PART_ROWS", 16)


@pytest.fixture
def asked(monkeypatch):
    """The prompts of each call of a model."""
    calls = []
    sampled = Sampling.token_ids

    def counted(self, model, tokens, prompts, *given, **further):
        calls.append(list(prompts))
        return sampled(self, model, tokens, prompts, *given, **further)

    monkeypatch.setattr(Sampling, "token_ids", counted)
    return calls


def teacher_text(data, saved, max_new_tokens=6, **given):
    source = given.pop("source", None) or ModelSource(path=str(saved))
    return TeacherText(max_new_tokens, **given).training_set(
        data.train_tokens, source, data.tokenizer, **CPU, cache_dir=data.cache_dir
    )


def same(a, b):
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_the_teacher_answers_every_prompt_once(saved, tmp_path, small_parts, asked, capsys):
    data = data_of(tmp_path, size=40)
    answered = teacher_text(data, saved)
    assert [len(prompts) for prompts in asked] == [16, 16, 8]
    prompts = [data.encoder.prompt(example) for example in data.train_examples]
    model = AutoModelForCausalLM.from_pretrained(saved)
    greedy = Sampling(6, temperature=0.0).token_ids(model, TOKENS, prompts, 0, vocabulary=len(TOKENS))
    for (ids, n_prompt, _), prompt, (answer,) in zip(answered, prompts, greedy, strict=True):
        assert ids.tolist() == prompt + answer
        assert n_prompt == len(prompt)
    calls = len(asked)
    capsys.readouterr()
    assert same(teacher_text(data, saved, batch_size=3, seed=9), answered), "greedy, so the seed is idle"
    assert len(asked) == calls
    assert "The teacher's text is complete" in capsys.readouterr().out
    data.train_on(answered)
    assert sum(len(batch["rows"]) for step in data.train_dataloader() for batch in step) == 40


def test_what_makes_another_text(saved, tmp_path, asked):
    data = data_of(tmp_path, size=8)

    def folders():
        return len(list(data.cache_dir.glob("text-*/")))

    first = teacher_text(data, saved)
    shutil.copytree(saved, tmp_path / "copy")
    teacher_text(data, tmp_path / "copy")
    assert folders() == 1
    for n, settings_of_one in enumerate(
        (
            {"max_new_tokens": 5},
            {"temperature": 1.0},
            {"temperature": 1.0, "seed": 1},
            {"temperature": 1.0, "top_p": 0.9},
            {"temperature": 1.0, "top_k": 3},
            {"source": ModelSource(path=str(saved), dtype="bfloat16")},
        ),
        2,
    ):
        teacher_text(data, saved, **settings_of_one)
        assert folders() == n
    assert same(teacher_text(data, saved), first)
    teacher_text(data_of(tmp_path, size=9), saved)
    assert folders() == 8
    assert len(asked) == 8


def test_a_killed_writer_goes_on_and_damage_is_mended(saved, tmp_path, small_parts, asked, monkeypatch):
    whole = teacher_text(data_of(tmp_path / "a", size=40), saved, temperature=1.0)
    data = data_of(tmp_path / "b", size=40)
    asked.clear()
    sampled = Sampling.token_ids

    def killed(self, *given, **further):
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sampled(self, *given, **further)

    monkeypatch.setattr(Sampling, "token_ids", killed)
    with pytest.raises(KeyboardInterrupt):
        teacher_text(data, saved, temperature=1.0)
    monkeypatch.setattr(Sampling, "token_ids", sampled)
    (folder,) = data.cache_dir.glob("text-*/")
    assert len(list(folder.glob("*.safetensors"))) == 2
    asked.clear()
    assert same(teacher_text(data, saved, temperature=1.0), whole)
    assert [len(prompts) for prompts in asked] == [8]
    for damage in (
        lambda: (folder / "answers-00001.safetensors").write_bytes(b"x" * 99),
        lambda: (folder / "answers-00001.safetensors").unlink(),
    ):
        damage()
        asked.clear()
        assert same(teacher_text(data, saved, temperature=1.0), whole)
        assert [len(prompts) for prompts in asked] == [16]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest)[:-9])
    asked.clear()
    assert same(teacher_text(data, saved, temperature=1.0), whole)
    assert len(asked) == 3


def one_of_two_writers(barrier, answers, saved, data):
    loaded = []
    load = ModelSource.load
    ModelSource.load = lambda self, tokens: loaded.append(1) or load(self, tokens)
    barrier.wait()
    answers.put((len(loaded), teacher_text(data, saved).ids.tolist(), len(loaded)))


def test_of_two_runs_at_once_one_writes(saved, tmp_path, small_parts):
    data = data_of(tmp_path, size=40)
    assert data.train_tokens.ends[-1]
    barrier, answers = FORK.Barrier(2), FORK.Queue()
    processes = [
        FORK.Process(target=one_of_two_writers, args=(barrier, answers, saved, data)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    got = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(loaded for _, _, loaded in got) == [0, 1]
    assert got[0][1] == got[1][1]


def test_a_teacher_of_random_weights_is_refused(tmp_path):
    source = ModelSource(architecture={"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2})
    with pytest.raises(InputError, match=r"random weights.*use text=data"):
        teacher_text(data_of(tmp_path), None, source=source)


# Plain text


def test_the_loss_on_plain_text_is_the_one_computed_by_hand(tmp_path):
    words = " ".join(example.outputs[0] for example in corpus("train", size=60))
    given = {"plain_text": [words, "Name a brave dog."], "batch_size": 4, "micro_batch_size": 3}
    data = data_of(tmp_path, size=4, **given)
    pieces = [
        ids[mask == 1]
        for batch in data.plain_batch(0)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len({len(ids) for ids in pieces}) == 2, "the last piece is a short one"
    student, by_hand = network(), network()
    module, logged = fitted(
        data,
        DataText(),
        student,
        plain_text=data.plain_batch,
        plain_text_weight=0.7,
        objective=CrossEntropy(),
    )

    def mean(rows):
        """Of the cross-entropy over all counted tokens."""
        parts = []
        for ids, n_prompt in rows:
            logits = by_hand(input_ids=ids[None].long()).logits[0]
            parts.append(F.cross_entropy(logits[:-1], ids[1:].long(), reduction="none")[n_prompt - 1 :])
        return torch.cat(parts).mean()

    on_data = mean((ids, n_prompt) for ids, n_prompt, _ in data.train_tokens)
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
    pieces = list(packed(documents, TOKENS, length))
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
        for batch in data.plain_batch(number)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    whole = sorted(tuple(ids.tolist()) for ids, _, _ in data.plain_tokens)
    assert sorted(pieces) == sorted(whole * 3)
    again = data_of(tmp_path, plain_text=documents, batch_size=3)
    assert torch.equal(again.plain_batch(5)[0]["input_ids"], data.plain_batch(5)[0]["input_ids"])
    other = data_of(tmp_path, plain_text=documents, batch_size=3, seed=2)
    batches = range(n // 3)
    assert [b["input_ids"].tolist() for i in batches for b in other.plain_batch(i)] != [
        b["input_ids"].tolist() for i in batches for b in data.plain_batch(i)
    ]


def test_the_responses_of_the_data_in_the_place_of_plain_text(tmp_path):
    data = data_of(tmp_path, size=9, plain_text="responses", batch_size=3)
    seen = [
        (tuple(ids[mask == 1].tolist()), int((labels != IGNORE).sum()))
        for number in range(6)
        for batch in data.plain_batch(number)
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        )
    ]
    whole = [(tuple(ids.tolist()), len(ids) - n_prompt) for ids, n_prompt, _ in data.train_tokens]
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
        ({"output": "a"}, "field 'text' is None"),
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
    with pytest.raises(InputError, match="must be above 0"):
        data_of(tmp_path, plain_text_weight=0.0)


# Whole runs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """One folder of fine-tuned tiny models for all runs of this file."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def quick(small_run, prepared):
    return [*(o for o in small_run if not o.startswith("prepared_dir")), f"prepared_dir={prepared}"]


def trained(*overrides):
    return main(["train", *overrides, "trainer.log_every_n_steps=1"])


def curve(directory):
    with (directory / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=seqkd"], {"train/loss"}),
        (["method=kd", "text=teacher"], {"train/kl_pq"}),
        (["method=imitkd"], {"train/student_text", "train/student_text_tokens"}),
        (["method=gkd"], {"train/student_text"}),
        (["method=distillm_skl", "text.threshold=1"], {"train/text_threshold", "train/student_text_tokens"}),
        (["text=adaptive", "teacher=cached"], {"train/text_threshold", "train/gradient_weight"}),
        (["method=minillm"], {"train/importance", "train/to_go", "train/plain_text_loss"}),
        (["text=rollouts", "teacher=cached", "text.epochs=1"], {"train/gradient_weight"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_text_trains(quick, tmp_path, overrides, expected):
    assert trained(*quick, *overrides) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    assert results.load(directory).training["steps"] == 4
    assert expected <= {key for row in curve(directory) for key in row}


def test_micro_batches_change_neither_the_coin_nor_the_text(quick, tmp_path):
    curves = []
    for setting in ("data.micro_batch_size=null", "data.micro_batch_size=3"):
        out = tmp_path / setting
        given = ["method=gkd", "text.share=0.5", "trainer.max_epochs=3", "data.batch_size=8", setting]
        assert trained(*(o for o in quick if o[8:] != "max_epochs=2"), *given, f"output_dir={out}") == 0
        (directory,) = out.iterdir()
        rows = [row for row in curve(directory) if "train/loss" in row]
        curves.append(
            [[row[f"train/{key}"] for key in ("loss", "gradient_norm", "student_text")] for row in rows]
        )
    assert {row[2] for row in curves[0]} == {0.0, 1.0}
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        ["method=distillm_skl", "text.threshold=0.8", "text.capacity=20", "text.tolerance=-9"],
        ["method=minillm", "text.batches=3", "text.epochs=2"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_resumed_run_ends_as_a_whole_one(quick, tmp_path, jsonl, monkeypatch, method):
    base = [o for o in quick if not o.startswith("trainer.max_epochs")]
    given = [*base, *method, "trainer.max_epochs=4", "checkpoint=loss", "data.batch_size=8"]
    plain = jsonl({"text": "Name a brave dog. " * 40})
    given.append(f"data.plain_text={plain}")
    assert trained(*given, f"output_dir={tmp_path / 'whole'}") == 0
    step = DistillationModule.training_step

    def killed(self, batches, index):
        if self.trainer.global_step == 5:
            raise KeyboardInterrupt
        return step(self, batches, index)

    monkeypatch.setattr(DistillationModule, "training_step", killed)
    assert trained(*given, f"output_dir={tmp_path / 'cut'}") == 130
    monkeypatch.setattr(DistillationModule, "training_step", step)
    assert trained(*given, f"output_dir={tmp_path / 'cut'}") == 0
    (whole,), (cut,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    assert results.load(whole).scores == results.load(cut).scores
    weights = [(path / "checkpoints" / "best" / "model.safetensors").read_bytes() for path in (whole, cut)]
    assert weights[0] == weights[1]
    steps, resumed = ([row for row in curve(path) if "train/loss" in row] for path in (whole, cut))
    assert len(steps) == 8
    assert resumed == [row for row in steps if row["step"] >= 4]
    if "train/text_threshold" in steps[0]:
        assert {row["train/student_text"] for row in steps} == {0.0, 1.0}
        assert len({row["train/text_threshold"] for row in steps}) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=sft", "text=student"], "gives none; use text=data"),
        (["text=mixed", "text.share=0"], "text.share=0 must be in (0, 1]"),
        (["text=student", "text.top_p=2"], "text.top_p=2 must be in (0, 1]"),
        (["text=teacher", "text.temperature=-1"], "text.temperature=-1"),
        (["text=adaptive", "text.threshold=2"], "text.threshold=2 must be in [0, 1]"),
        (["text=adaptive", "text.tolerance=nan"], "text.tolerance=nan must be a finite number"),
        (["text=adaptive", "text.capacity=0"], "text.capacity=0 must be at least 1"),
        (["method=minillm", "text=student"], "sampled with; use text=rollouts"),
        (["method=minillm", "text.teacher_share=1"], "text.teacher_share=1 must be in [0, 1)"),
        (["method=minillm", "text.batches=0"], "text.batches=0 must be at least 1"),
        (["data.plain_text=none.txt"], "none.txt cannot be read"),
        (
            ["method=seqkd", "model.teacher.sft=null"],
            "text=teacher: a teacher of random weights is another one in each run",
        ),
    ],
)
def test_mistakes(quick, tmp_path, capsys, overrides, message):
    assert trained(*quick, *overrides) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("result.json"))
