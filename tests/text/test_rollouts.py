"""Samples of student and teacher, used for several steps."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import EOS, TOKENS, data_of, fitted, network

from amid.data.prompts import IGNORE
from amid.data.tokens import NO_ROW, Tokens
from amid.generation.sampling import MixedAnswer, Sampling
from amid.losses import MiniLLM
from amid.teacher.signals import LiveTeacher
from amid.text import RolloutText
from amid.text.base import seed_of

MODEL = network(eos_bias=5.0)


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
            for ids, n_prompt, number_of_row, _, sampling in rows:
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
            assert all(torch.equal(a.sampling, b.sampling) for a, b in zip(mine, theirs, strict=True))


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
            rollouts.sampling.mixed(student, teacher, TOKENS, prompts, seed_of(2, 0), 0.3),
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
            single_step = (log_q.exp() * (log_q - log_p)).sum(-1)
            reward = (drawn.log_teacher - drawn.log_student).tolist()
            for t, token in enumerate(drawn.tokens):
                later = reward[t + 1 :]
                to_go = sum(later) / len(later) if later else 0.0
                ratio = (log_q[t, token] - drawn.log_mixed[t]).exp()
                clipped += float((ratio.detach() - 1) * to_go) > 0.2 * abs(to_go)
                total = total + ratio.detach() * single_step[t]
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


@pytest.mark.slow
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
    assert "sampling" not in data.micro_batches(on_data)[0]
