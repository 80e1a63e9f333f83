"""The choice of the text that a step trains on."""

import io
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import EOS, answer_with

from amid.data.tokens import NO_ROW, Row
from amid.text import AdaptiveText, DataText, RolloutText, StudentText, TeacherText, Text
from amid.text import student as student_text


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
    assert [(ids.tolist(), n_prompt, number) for ids, n_prompt, number, *_ in rows] == [
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
    monkeypatch.setattr(student_text, "_uniform", lambda seed, step: u)
    adaptive = AdaptiveText(9, threshold=threshold, capacity=4)
    adaptive.buffer.extend(Row(torch.tensor([9, i]), 1) for i in range(4 if full else 3))
    before, answer = list(adaptive.buffer), answer_with(7, EOS)
    rows = adaptive.rows([[1], [2]], step, 100, answer)
    assert answer.calls == (expected == "student")
    if expected == "data":
        assert rows is None
    elif expected == "student":
        assert [ids.tolist() for ids, *_ in rows] == [[1, 7, EOS], [2, 7, EOS]]
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
        written += [ids.tolist() for ids, *_ in rows]
    assert [ids.tolist() for ids, *_ in adaptive.buffer] == written[-capacity:]
    file = io.BytesIO()
    torch.save(adaptive.state(), file)
    file.seek(0)
    other = AdaptiveText(9, threshold=0.3, capacity=capacity)
    other.load_state(torch.load(file, weights_only=True))
    assert (other.threshold, other.reference) == (1.0, 2.0)
    assert [(ids.tolist(), n, number) for ids, n, number, *_ in other.buffer] == [
        (ids.tolist(), n, number) for ids, n, number, *_ in adaptive.buffer
    ]
    replayed = [part.rows([[1], [2]], 10**9, 10**9, answer_with(1)) for part in (adaptive, other)]
    mine, theirs = [[ids.tolist() for ids, *_ in rows] for rows in replayed]
    assert mine == theirs


def test_the_coin_of_adaptive_text_depends_on_seed_and_step_only():
    taken = []
    for other in (1, 2):
        random.seed(other)
        torch.manual_seed(other)
        adaptive, prompts = AdaptiveText(9, threshold=0.7, capacity=6, seed=1), [[other]] * other
        rows = [adaptive.rows(prompts, step, 30, answer_with(*[other] * 3)) for step in range(30)]
        taken.append([part is not None for part in rows])
    assert taken[0] == taken[1]
    assert set(taken[0]) == {True, False}


def test_the_share_of_answers_among_the_rows_is_known():
    assert DataText().answer_share == 0.0
    assert TeacherText(4).answer_share == 1.0
    assert StudentText(4, share=0.25).answer_share == 0.25
    assert RolloutText(4, 8, epochs=4).answer_share == 1.0
    assert AdaptiveText(4, threshold=0.5, increase=0.1).answer_share == 1.0
    assert AdaptiveText(4, threshold=0.5, increase=0.0).answer_share == 0.5

    class Own(Text):
        from_student = True

    assert math.isnan(Own().answer_share)
