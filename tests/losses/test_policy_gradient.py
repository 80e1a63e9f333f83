"""MiniLLM's loss against all sequences of a tiny language, enumerated."""

import itertools
import math

import pytest
import torch
from losses_reference import on_default_device
from torch import Tensor

from amid.losses import (
    KL,
    AlphaMixture,
    MiniLLM,
    Objective,
    WeightedSum,
    long_term_loss,
    mixed_log_probs,
    rewards_to_go,
)

V, T, END = 3, 3, 2


class Table:
    """A language model over V tokens: one row of logits for each prefix of up to T - 1 tokens."""

    def __init__(self, seed: int) -> None:
        prefixes = [p for n in range(T) for p in itertools.product(range(V), repeat=n)]
        self.rows = {prefix: row for row, prefix in enumerate(prefixes)}
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        self.weights = torch.randn(len(prefixes), V, generator=generator, dtype=torch.float64)

    def logits(self, sequence: tuple[int, ...]) -> Tensor:
        """[T, V]; the rows past the end of the sequence are those of some prefix and do not count."""
        prefixes = [sequence[:t] if t <= len(sequence) else () for t in range(T)]
        return self.weights[[self.rows[prefix] for prefix in prefixes]]


def sequences(with_end: bool) -> list[tuple[int, ...]]:
    """All of T tokens, or those that END ends earlier too."""
    every = itertools.product(range(V), repeat=T)
    if not with_end:
        return list(every)
    return sorted({s[: s.index(END) + 1] if END in s else s for s in every})


def batch(which: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor([[*s, *[-100] * (T - len(s))] for s in which])
    return tokens, tokens >= 0


def log_probs_of(table: Table, which: list[tuple[int, ...]]) -> Tensor:
    """[B, T], at the sampled tokens; 0 past the end."""
    tokens, mask = batch(which)
    logits = torch.stack([table.logits(s) for s in which])
    chosen = logits.log_softmax(-1).gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(mask, chosen, 0)


@pytest.mark.parametrize("with_end", [False, True])
def test_the_expected_gradient_is_that_of_the_reverse_kl_of_sequences(with_end: bool) -> None:
    student, teacher = Table(0), Table(1)
    student.weights.requires_grad_()
    which = sequences(with_end)
    log_q, log_p = (log_probs_of(table, which).sum(-1) for table in (student, teacher))
    assert math.isclose(log_q.detach().exp().sum(), 1)
    reverse_kl = (log_q.exp() * (log_q - log_p)).sum()
    (expected,) = torch.autograd.grad(reverse_kl, student.weights)

    loss, total = MiniLLM(clip=None), torch.zeros(())
    for sequence, probability in zip(which, log_q.detach().exp(), strict=True):
        tokens, mask = batch([sequence])
        of_tokens = [log_probs_of(table, [sequence]).detach() for table in (teacher, student)]
        value = loss(
            student_logits=student.logits(sequence).unsqueeze(0),
            teacher_logits=teacher.logits(sequence).unsqueeze(0),
            labels=tokens,
            sampling=torch.stack([of_tokens[1], rewards_to_go(*of_tokens, mask, normalise=False)], -1),
            mask=mask,
            denominator=1,
        )
        total = total + probability * value
    (gradient,) = torch.autograd.grad(total, student.weights)
    torch.testing.assert_close(gradient, expected)
    assert expected.norm() > 0.1


def test_importance_weights_are_exact_where_only_the_weighted_token_was_mixed() -> None:
    """The first token from a p + (1-a) q, the second from q: the weight of the first is all of the weight."""
    student, teacher = Table(2), Table(3)
    student.weights.requires_grad_()
    which = list(itertools.product(range(V), repeat=2))
    mask = torch.tensor([[True, True, False]] * len(which))
    log_q, log_p = log_probs_of(student, which), log_probs_of(teacher, which)
    mixed = torch.where(torch.arange(T) == 0, mixed_log_probs(log_p, log_q, 0.3), log_q).detach()
    to_go = rewards_to_go(log_p, log_q, mask)

    def expected_gradient(log_sampling: Tensor) -> Tensor:
        parts = []
        for i in range(len(which)):
            row = {"log_q": log_q[i], "log_sampling": log_sampling[i], "to_go": to_go[i], "mask": mask[i]}
            parts.append(long_term_loss(**row, denominator=1, clip=None)[0])
        total = (log_sampling.sum(-1).exp() * torch.stack(parts)).sum()
        return torch.autograd.grad(total, student.weights, retain_graph=True)[0]

    on_policy = expected_gradient(log_q.detach())
    torch.testing.assert_close(expected_gradient(mixed), on_policy)
    assert on_policy.norm() > 0.01


def test_the_weights_of_the_single_step_change_its_variance_and_not_its_mean() -> None:
    """Over the tokens of one place, drawn from a p + (1-a) q."""
    student, teacher = torch.randn(V).requires_grad_(), torch.randn(V)
    log_q, log_p = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    log_sampling = mixed_log_probs(log_p, log_q, 0.3)
    gradients = []
    for weighted in (True, False):
        loss = MiniLLM(clip=None, weighted_single_step=weighted)
        parts = [
            loss(
                student_logits=student.unsqueeze(0),
                teacher_logits=teacher.unsqueeze(0),
                labels=torch.tensor([token]),
                sampling=torch.stack([log_sampling[token], torch.zeros(())]).unsqueeze(0),
            )
            for token in range(V)
        ]
        assert (torch.stack(parts).std() > 1e-3) == weighted
        (gradient,) = torch.autograd.grad((log_sampling.exp() * torch.stack(parts)).sum(), student)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_rewards_to_go_are_means_over_what_comes_after() -> None:
    log_p = torch.tensor([[0.0, -1.0, -2.0, -4.0], [0.0, -3.0, math.nan, math.inf]])
    log_q = torch.tensor([[-1.0, -1.5, -1.0, -2.0], [-9.0, -1.0, math.nan, 0.0]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    sums = rewards_to_go(log_p, log_q, mask, normalise=False)
    assert sums.tolist() == [[0.5 - 1 - 2, -1 - 2, -2, 0], [-2, 0, 0, 0]]
    means = rewards_to_go(log_p, log_q, mask)
    torch.testing.assert_close(means, torch.tensor([[-2.5 / 3, -1.5, -2, 0], [-2.0, 0, 0, 0]]))
    assert not rewards_to_go(log_p, log_q.requires_grad_(), mask).requires_grad


@pytest.mark.parametrize(
    ("ratio", "to_go", "value", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # a good token that is likelier by more than ε already
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),  # a bad one that is less likely by more than ε already
    ],
)
def test_clipping(ratio: float, to_go: float, value: float, slope: float) -> None:
    log_q = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, stats = long_term_loss(
        log_q=log_q, log_sampling=torch.zeros(1, 1), to_go=torch.tensor([[to_go]]), mask=mask
    )
    (gradient,) = torch.autograd.grad(loss, log_q)
    assert loss.item() == pytest.approx(value)
    assert gradient.item() == pytest.approx(slope)
    assert stats["clipped"] == (slope == 0)
    assert stats["importance"].item() == pytest.approx(ratio)


def test_mixed_log_probs_are_the_arithmetic_assistant() -> None:
    log_p, log_q = torch.randn(2, 5, 9, dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(mixed_log_probs(log_p, log_q, 0.2), AlphaMixture(-1, 0.2)(log_p, log_q))
    assert torch.equal(mixed_log_probs(log_p, log_q, 0.0), log_q)
    assert torch.equal(mixed_log_probs(log_p, log_q, 1), log_p)
    for bad in (1.1, -0.1, math.nan):
        with pytest.raises(ValueError, match="teacher_share"):
            mixed_log_probs(log_p, log_q, bad)


def sample(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Logits [4, 6, 7] of student and teacher, and tokens that were drawn some steps ago."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, 7, dtype=dtype)
    labels = torch.randint(0, 7, (4, 6))
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    log_q, log_p = (
        logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1) for logits in (student, teacher)
    )
    log_sampling = mixed_log_probs(log_p, log_q) + 0.3 * torch.randn(4, 6, dtype=dtype)
    sampling = torch.stack([log_sampling, rewards_to_go(log_p, log_q, mask)], -1)
    return {
        "student_logits": student,
        "teacher_logits": teacher,
        "labels": labels,
        "sampling": sampling,
        "mask": mask,
    }


def test_parts_and_stats_of_the_whole_loss() -> None:
    given = sample()
    mask, sampling = given["mask"], given["sampling"]
    value, stats = MiniLLM()(**given, return_stats=True)
    logits = {name: given[name] for name in ("student_logits", "teacher_logits", "mask")}
    single = Objective(KL(), order="qp")(**logits)
    index = given["labels"].unsqueeze(-1)
    long, of_long = long_term_loss(
        log_q=given["student_logits"].log_softmax(-1).gather(-1, index).squeeze(-1),
        log_sampling=sampling[..., 0],
        to_go=sampling[..., 1],
        mask=mask,
    )
    torch.testing.assert_close(MiniLLM(weighted_single_step=False)(**given), single + long)
    log_q, log_p = (given[f"{name}_logits"][mask].log_softmax(-1) for name in ("student", "teacher"))
    chosen = log_q.gather(-1, index[mask]).squeeze(-1)
    weights = (chosen - sampling[mask][:, 0]).exp()
    assert weights.std() > 0.1
    torch.testing.assert_close(value, (weights * KL()(log_q, log_p)).mean() + long)
    torch.testing.assert_close(stats["single_step"], single * 10)
    torch.testing.assert_close(stats["to_go"], sampling[..., 1].sum())
    torch.testing.assert_close({name: stats[name] for name in of_long}, of_long)
    assert 0 < stats["clipped"] < 10
    assert MiniLLM()(**logits) == single, "of text that nobody sampled"
    none = MiniLLM()(**given | {"mask": torch.zeros_like(mask)})
    assert none == 0

    halves = [
        MiniLLM()(**{name: x[part] for name, x in given.items()}, denominator=10)
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(halves[0] + halves[1], value)

    for name, what in (("student_logits", math.nan), ("teacher_logits", math.inf), ("sampling", math.nan)):
        given[name][~mask] = what
    given["labels"][~mask] = -100
    leaf = given["student_logits"].clone().requires_grad_()
    again = MiniLLM()(**given | {"student_logits": leaf})
    (gradient,) = torch.autograd.grad(again, leaf)
    assert torch.equal(again.detach(), value)
    assert gradient[~mask].abs().max() == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("clip", [None, 0.2, 1e-3])
@pytest.mark.parametrize(("sampled", "weighted"), [(True, True), (True, False), (False, True)])
def test_the_fused_form_has_the_value_the_gradients_and_the_sums(
    clip: float | None, sampled: bool, weighted: bool
) -> None:
    given = sample(torch.float32)
    if not sampled:
        del given["labels"], given["sampling"]
    n_vocab, width = 7, 5
    hidden, weight = torch.randn(4, 6, width), torch.randn(n_vocab, width)
    teacher = {"teacher_hidden": torch.randn(4, 6, 3), "teacher_weight": torch.randn(n_vocab, 3)}
    rest = {name: x for name, x in given.items() if "logits" not in name} | {"denominator": 7.0}
    term = MiniLLM(clip=clip, weighted_single_step=weighted)
    for loss in (term, WeightedSum([(0.5, term), (2.0, Objective(KL()))])):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        value, stats = loss.fused(
            student_hidden=leaves[0],
            student_weight=leaves[1],
            **teacher,
            **rest,
            chunk_tokens=3,
            return_stats=True,
        )
        value.backward()
        true = [x.double().requires_grad_() for x in (hidden, weight)]
        expected, sums = loss(
            student_logits=true[0] @ true[1].T,
            teacher_logits=(teacher["teacher_hidden"] @ teacher["teacher_weight"].T).double(),
            **rest,
            return_stats=True,
        )
        expected.backward()
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        for mine, theirs in zip(leaves, true, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)
        assert stats.keys() == sums.keys()
        for name, x in sums.items():
            torch.testing.assert_close(stats[name].double(), x.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": None}, "labels=None but the loss needs it"),
        ({"labels": torch.full((4, 6), 7)}, r"labels at counted positions must lie in \[0, 7\)"),
        ({"sampling": torch.zeros(4, 5, 2)}, "sampling must have the leading shape"),
        ({"labels": torch.zeros(4, 5)}, "labels must have the leading shape"),
    ],
)
def test_wrong_inputs_of_the_whole_loss_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiniLLM()(**sample() | on_default_device(wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip must be above 0, got clip=-1"):
        MiniLLM(clip=-1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip": 0}, "clip must be above 0, got clip=0"),
        ({"mask": torch.ones(1, 2)}, "mask must be boolean"),
        ({"to_go": torch.zeros(1, 3)}, "to_go must have the shape of mask"),
        ({"denominator": 0}, "denominator must be a positive number"),
    ],
)
def test_wrong_inputs_are_named(wrong: dict[str, object], message: str) -> None:
    zeros = torch.zeros(1, 2)
    given = {"log_q": zeros, "log_sampling": zeros, "to_go": zeros, "mask": torch.ones(1, 2).bool()}
    with pytest.raises(ValueError, match=message):
        long_term_loss(**given | wrong)  # type: ignore[arg-type]
