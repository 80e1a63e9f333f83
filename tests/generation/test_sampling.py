import contextlib
import statistics

import pytest
import torch
from families import FAMILIES, MLP, PROMPTS, SMALL, TOKENS, VOCAB, network, prompts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from amid.errors import InputError
from amid.generation.sampling import Sampling


def drawn(model, prompts=PROMPTS, seed=1, samples=None, **fields):
    sampling = Sampling(**{"max_new_tokens": 12, "batch_size": 4, **fields})
    return sampling.answers(model, TOKENS, prompts, seed, samples)


def published(model, prompts, **fields):
    """Greedy answers of transformers, one prompt at a time."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=TOKENS.eos_token_id,
                pad_token_id=TOKENS.pad_token_id,
                **fields,
            ),
        )
        rows.append(output[0, len(prompt) :].tolist())
    return rows


def tokens_of(monkeypatch, model, prompts=PROMPTS, **fields):
    """The token ids behind the answers."""
    monkeypatch.setattr("amid.generation.sampling.as_answer", lambda ids, *_: ids)
    return [row[0] for row in drawn(model, prompts, **fields)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family, monkeypatch):
    model = network(family, eos_bias=3.0)
    ours = tokens_of(monkeypatch, model, temperature=0)
    assert ours == published(model, PROMPTS)
    lengths = {len(row) for row in ours}
    assert 12 in lengths
    assert min(lengths) < 12


LIKE_OTHERS = ("opt", "qwen2", "qwen3", "gemma2")
"""Families with the caches and positions of another family."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] if f in LIKE_OTHERS else []) for f in FAMILIES],
)
@pytest.mark.parametrize("batch_sizes", [(3, 100), pytest.param((2, 7), marks=pytest.mark.slow)])
def test_samples_do_not_depend_on_the_batch_size(batch_sizes, family):
    model = network(family, eos_bias=4.0)
    prompts = PROMPTS[:8]
    alone = drawn(model, prompts, samples=3, batch_size=1)
    assert len({answer.tokens for row in alone for answer in row}) > 3
    for batch_size in batch_sizes:
        assert drawn(model, prompts, samples=3, batch_size=batch_size) == alone


# The same examples each time: once in many, the last digits, which the batch changes, decide about a token.
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=9),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from(["llama", "gemma2"]),
    st.randoms(use_true_random=False),
)
def test_an_answer_depends_on_its_prompt_only(lengths, batch_size, samples, family, rng):
    model = MODELS[family]
    prompts = prompts_of(lengths, seed=3)
    whole = drawn(model, prompts, samples=samples, batch_size=batch_size)
    order = rng.sample(range(len(prompts)), len(prompts))
    some = order[: rng.randrange(1, len(prompts) + 1)]
    again = drawn(model, [prompts[i] for i in some], samples=samples + 1)
    assert [row[:samples] for row in again] == [whole[i] for i in some]


MODELS = {family: network(family, eos_bias=4.0) for family in ("llama", "gemma2")}


def test_seeds_samples_and_equal_prompts_have_their_own_random_numbers():
    model = network()
    first, second = drawn(model, [PROMPTS[0]] * 2, seed=1, samples=3)
    other = drawn(model, [PROMPTS[0]], seed=2, samples=3)[0]
    texts = [answer.text for answer in (*first, *second, *other)]
    assert len(set(texts)) == len(texts)


def test_more_new_tokens_continue_the_same_answers(monkeypatch):
    model = network()
    short = tokens_of(monkeypatch, model, max_new_tokens=5)
    long = tokens_of(monkeypatch, model, max_new_tokens=12)
    assert [row[:5] for row in long] == short


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 1.5, "top_k": 9, "top_p": 0.8}],
)
def test_sampled_tokens_follow_the_distribution_of_transformers(fields, monkeypatch):
    """Chi-square of first tokens against the probabilities that transformers' own processors give."""
    model = network(initializer_range=0.2)
    ids = torch.tensor([PROMPTS[0]])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            max_new_tokens=1,
            do_sample=True,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=TOKENS.pad_token_id,
            **{"top_k": 0, **fields},
        ),
    )
    probabilities = output.scores[0][0].softmax(-1).double()
    draws = 20000
    monkeypatch.setattr("amid.generation.sampling.as_answer", lambda ids, *_: ids[0])
    tokens = drawn(model, PROMPTS[:1], samples=draws, max_new_tokens=1, batch_size=1000, **fields)[0]
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()
    assert not counts[probabilities == 0].any()
    order = probabilities.argsort(descending=True)
    bins = (probabilities[order].cumsum(0) * 40).long().clamp(max=39)  # about 40 bins of equal probability
    expected = torch.zeros(40).double().index_add(0, bins, probabilities[order]) * draws
    observed = torch.zeros(40).double().index_add(0, bins, counts[order])
    used = expected > 5
    assert observed[~used].sum() <= 30
    chi2 = float(((observed - expected)[used] ** 2 / expected[used]).sum())
    degrees = int(used.sum()) - 1
    assert degrees >= 3
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5


def test_the_second_token_follows_the_first(monkeypatch):
    """The frequency of each pair of tokens is p(first) p(second | first): the cache is the right one."""
    model = network(initializer_range=0.4)
    monkeypatch.setattr("amid.generation.sampling.as_answer", lambda ids, *_: tuple(ids))
    pairs = drawn(model, PROMPTS[:1], samples=4000, max_new_tokens=2, batch_size=500, top_k=3)[0]
    with torch.no_grad():
        for first in {pair[0] for pair in pairs} - {TOKENS.eos_token_id}:
            seconds = torch.tensor([pair[1] for pair in pairs if pair[0] == first])
            logits = model(input_ids=torch.tensor([[*PROMPTS[0], first]])).logits[0, -1]
            best = logits.topk(3)
            shares = torch.stack([(seconds == token).double().mean() for token in best.indices])
            assert float(shares.sum()) == 1
            error = (shares - best.values.softmax(-1)).abs()
            assert bool((error < 4 * (0.25 / len(seconds)) ** 0.5).all())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_occurs_twice(size, monkeypatch):
    model = network(tie_word_embeddings=True, initializer_range=0.2)  # such models repeat themselves
    loop = [[7, 8, 9] * 4, [5, 5], [3, 4, 3]]
    ours = tokens_of(monkeypatch, model, loop, temperature=0, no_repeat_ngram_size=size)
    assert ours == published(model, loop, no_repeat_ngram_size=size)
    assert ours != published(model, loop)
    sampled = tokens_of(monkeypatch, model, loop, no_repeat_ngram_size=size, temperature=0.3)
    for prompt, row in zip(loop, sampled, strict=True):
        whole = [*prompt, *row]
        grams = [tuple(whole[i : i + size]) for i in range(len(whole) - size + 1)]
        new = grams[max(len(prompt) - size + 1, 0) :]
        assert len(set(new)) == len(new)
        assert not set(new) & set(grams[: len(grams) - len(new)])


def test_samples_share_a_prefill_and_finished_rows_leave():
    model = network(eos_bias=4.0)
    calls = []

    def count(module, inputs, given):
        calls.append(tuple(given["input_ids"].shape))

    model.register_forward_pre_hook(count, with_kwargs=True)
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 1]
    answers = drawn(model, prompts, samples=4, batch_size=16)
    assert sum(rows for rows, width in calls if width > 1) == len(prompts)
    steps = sum(rows for rows, width in calls if width == 1)
    needed = sum(answer.tokens - 1 for row in answers for answer in row)
    longest = 12 * len(answers) * 4
    assert steps < 0.5 * (needed + longest)
    assert max(rows for rows, _ in calls) <= 16


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_answers_to_sets_are_those_to_each_set_with_each_seed(family):
    fields = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"], **MLP} if family == "lfm2" else {}
    model = network(family, eos_bias=4.0, **fields)
    sets = {
        "first": PROMPTS[:6],
        "none": [],
        "second": [PROMPTS[3], *prompts_of([4, 9, 6], seed=5), PROMPTS[3]],
    }
    for fields in ({"samples": 2, "batch_size": 9}, {"batch_size": 2}, {"temperature": 0}):
        sampling = Sampling(**{"max_new_tokens": 12, "seeds": [5, 6, 7], **fields})
        expected = [
            (name, None, seed, sampling.answers(model, TOKENS, prompts, seed))
            for name, prompts in sets.items()
            for seed in (5, 6, 7)
        ]
        ended: list[int] = []
        assert list(sampling.answers_to_sets(model, TOKENS, sets, ended.append)) == expected
        assert sum(ended) == sum(len(row) for *_, answers in expected for row in answers)


LADDERS = {"temperatures": [1.5, 0.3, 1.0], "top_ps": [0.5, 0.9]}


IN_SMALL_BATCHES = {"batch_size": 3, "no_repeat_ngram_size": 2, "top_k": 30}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("mistral", IN_SMALL_BATCHES),
        ("lfm2", {}),
        ("gpt2", IN_SMALL_BATCHES),
        *(
            pytest.param(family, fields, marks=pytest.mark.slow)
            for family, fields in [
                ("llama", IN_SMALL_BATCHES),
                ("mistral", {}),
                ("lfm2", IN_SMALL_BATCHES),
                ("gpt2", {}),
            ]
        ),
    ],
)
def test_an_answer_at_a_rung_is_the_answer_drawn_with_its_temperature_alone(family, fields):
    other = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"], **MLP} if family == "lfm2" else {}
    model = network(family, eos_bias=3.0, **other)
    given = {"max_new_tokens": 12, "seeds": [5, 6], "samples": 2, "batch_size": 30, **fields}
    sets = {"first": PROMPTS[:6], "second": [PROMPTS[3], PROMPTS[3], PROMPTS[0]]}
    ladder = list(Sampling(**given, **LADDERS).answers_to_sets(model, TOKENS, sets))
    rungs = [("temperature", 0.3), ("temperature", 1.5), ("top_p", 0.5), ("top_p", 0.9)]
    assert {rung for _, rung, _, _ in ladder} == {None, *rungs}
    for rung in (None, *rungs):
        alone = Sampling(**given | ({} if rung is None else dict([rung]))).answers_to_sets(
            model, TOKENS, sets
        )
        of_rung = [(name, seed, answers) for name, at, seed, answers in ladder if at == rung]
        assert of_rung == [(name, seed, answers) for name, _, seed, answers in alone]


def test_answers_with_equal_beginnings_are_decoded_once(monkeypatch):
    model = network(initializer_range=0.9, eos_bias=2.0)
    read: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda module, inputs, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr("amid.generation.sampling.as_answer", lambda ids, *_: ids)
    sampling = Sampling(12, [5, 6], 4, temperatures=[0.2, 0.4, 0.8, 1.0], batch_size=200)
    drawn = list(sampling.answers_to_sets(model, TOKENS, {"open": PROMPTS[:4]}))
    answers = [(i, ids) for *_, rows in drawn for i, row in enumerate(rows) for ids in row]
    assert len(answers) == 4 * 4 * 8
    beginnings = {(i, *ids[:length]) for i, ids in answers for length in range(1, len(ids))}
    steps = sum(rows for rows, width in read if width == 1)
    assert len(beginnings) <= steps <= 4 / 3 * len(beginnings)
    assert steps < 0.8 * sum(len(ids) - 1 for _, ids in answers)
    assert sum(rows for rows, width in read if width > 1) == 4


def test_greedy_answers_beside_a_ladder_of_temperatures():
    model = network(eos_bias=3.0)
    given = {"max_new_tokens": 12, "seeds": [5, 6], "temperature": 0.0}
    drawn = list(Sampling(**given, temperatures=[0.5, 2.0]).answers_to_sets(model, TOKENS, {"a": PROMPTS}))
    alone = list(Sampling(**given).answers_to_sets(model, TOKENS, {"a": PROMPTS}))
    assert drawn[:2] == alone
    hot = Sampling(max_new_tokens=12, temperature=2.0).answers(model, TOKENS, PROMPTS, 6)
    assert drawn[-1] == ("a", ("temperature", 2.0), 6, hot)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperatures": 0.5}, r"temperatures=0\.5 must be a list of numbers"),
        ({"temperatures": [0.5]}, r"temperatures=\[0\.5\] must be two numbers or more"),
        ({"temperatures": [0.5, "warm"]}, "must be finite numbers, and 'warm' is none"),
        ({"temperatures": [0.5, float("nan")]}, "must be finite numbers, and nan is none"),
        ({"temperatures": [0.5, True]}, "must be finite numbers, and True is none"),
        ({"temperatures": [0.5, -1]}, "must be numbers above 0, and -1 is none"),
        ({"temperatures": [0, 1.0], "samples": 4}, "answers drawn with 0 .greedy. are all equal"),
        ({"temperatures": [0.5, 1, 1.0]}, "must be different numbers, and 1 stands there twice"),
        ({"top_ps": [0.5, 1.5]}, r"top_ps=\[0\.5, 1\.5\] must be numbers above 0, up to 1, and 1\.5 is none"),
        ({"top_ps": [0.5, 0.9], "temperature": 0}, "greedy decoding ignores top-p"),
        ({"temperatures": [0.5, 1.0], "seeds": [1]}, "with one answer to a prompt"),
    ],
)
def test_ladders_that_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Sampling(max_new_tokens=3, **{"seeds": [1, 2], **fields})


def test_seeds_share_a_prefill():
    model = network()
    rows_read = []
    model.register_forward_pre_hook(
        lambda module, inputs, given: rows_read.append(given["input_ids"].shape), with_kwargs=True
    )
    sets = {"first": prompts_of([3, 17, 9]), "second": prompts_of([4, 9, 6, 2], seed=5)}
    sampling = Sampling(max_new_tokens=3, seeds=[5, 6, 7], batch_size=10)
    assert len(list(sampling.answers_to_sets(model, TOKENS, sets))) == 6
    assert sum(rows for rows, width in rows_read if width > 1) == 7


def test_positions_stay_within_the_model():
    """Rows that have ended wait in the batch without running past the positions that the model has."""
    model = network("gpt2", eos_bias=4.0, n_positions=17 + 12)
    prompts = prompts_of([17] * 80)
    assert drawn(model, prompts, batch_size=16) == drawn(model, prompts, batch_size=5)


@pytest.mark.parametrize("context", ["bfloat16", "autocast"])
def test_bfloat16(context):
    model = network(eos_bias=4.0)
    if context == "bfloat16":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16) if context == "autocast" else contextlib.nullcontext():
        first, second = drawn(model, samples=2), drawn(model, samples=2)
    assert first == second
    assert first != drawn(model.float(), samples=2) or context == "bfloat16"


class CastsOfWeights(TorchDispatchMode):
    """Counts the tensors of a weight's shape that are cast to bfloat16."""

    def __init__(self, model):
        super().__init__()
        self.shapes, self.count = {weight.shape for weight in model.parameters() if weight.ndim == 2}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        to = (kwargs or {}).get("dtype")
        self.count += (
            func is torch.ops.aten._to_copy.default and to == torch.bfloat16 and args[0].shape in self.shapes
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cache", [True, False])  # Lightning has none
@pytest.mark.parametrize("trained", [True, False])
def test_autocast_casts_each_weight_once_whatever_the_number_of_tokens(trained, cache):
    model = network(hidden_size=64).requires_grad_(trained)
    counts = []
    for tokens in (2, 12):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache), CastsOfWeights(model) as casts:
            drawn(model, prompts=prompts_of([5] * 4), max_new_tokens=tokens)
            assert torch.is_autocast_cache_enabled() == cache
        counts.append(casts.count)
    assert counts[0] == counts[1] > 0
    assert all(weight.requires_grad == trained for weight in model.parameters())


def test_a_step_after_answers_in_the_same_autocast_has_its_gradient():
    model, other = network(), network()
    ids = torch.tensor([PROMPTS[0]])
    for one in (model, other):
        with torch.autocast("cpu", torch.bfloat16):
            if one is model:
                drawn(one)
            one(input_ids=ids).logits.float().square().mean().backward()
    for weight, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight.grad, expected.grad)


def test_the_random_state_and_the_modes_are_left_as_they_were():
    model = network().train()
    model.model.norm.eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    answers = drawn(model)
    torch.testing.assert_close(torch.rand(3), expected)
    assert model.training
    assert not model.model.norm.training
    assert answers == drawn(model.eval())


def test_other_caches_fall_back_to_transformers(caplog):
    fields = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}
    model = network("lfm2", intermediate_size=32, **fields)
    answers = drawn(model, PROMPTS[:3], samples=2)
    assert "its cache cannot be divided by rows" in caplog.text
    assert [len(row) for row in answers] == [2, 2, 2]
    state = torch.get_rng_state()
    assert drawn(model, PROMPTS[:3], samples=2) == answers
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_refused_with_other_caches(temperature):
    fields = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}
    model = network("lfm2", intermediate_size=32, **fields)
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        drawn(model, PROMPTS[:2], temperature=temperature)


def test_broken_models_and_prompts_are_refused():
    model = network()
    model.lm_head.weight.data.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match="not finite"):
            drawn(model, temperature=temperature)
    with pytest.raises(InputError, match="prompt 1 has no token"):
        drawn(network(), [[3], []])
    for seeds, message in (
        ([-1], "must be a list of whole numbers"),
        ([True], "must be a list of whole numbers"),
        ([3, 3], "must be different seeds"),
    ):
        with pytest.raises(InputError, match=message):
            Sampling(max_new_tokens=1, seeds=seeds)
    with pytest.raises(InputError, match=r"generation\.top_k=-1 must be a whole number from 0"):
        Sampling(max_new_tokens=3, top_k=-1)
    assert drawn(network(), []) == []


def test_token_ids_are_those_of_the_answers_and_end_with_eos_unless_cut():
    model = network(eos_bias=4.0)
    sampling = Sampling(max_new_tokens=12, batch_size=4)
    for row, (answer,) in zip(sampling.token_ids(model, TOKENS, PROMPTS, seed=1), drawn(model), strict=True):
        (ids,) = row
        assert len(ids) == answer.tokens
        assert [i for i, token in enumerate(ids) if token == TOKENS.eos_token_id] == (
            [len(ids) - 1] if answer.ended else []
        )
        assert TOKENS.decode(ids, skip_special_tokens=True).strip() == answer.text


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_tokens_beyond_the_vocabulary_are_never_drawn(family, caplog):
    other = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}
    model = network(family, **({"intermediate_size": 32, **other} if family == "lfm2" else {}))
    rows = Sampling(max_new_tokens=12).token_ids(model, TOKENS, PROMPTS, seed=1, vocabulary=50)
    assert max(max(ids) for row in rows for ids in row) < 50


def mixed(student, teacher, prompts=PROMPTS, seed=1, teacher_share=0.2, **fields):
    sampling = Sampling(**{"max_new_tokens": 8, "batch_size": 4, **fields})
    return sampling.mixed(student, teacher, TOKENS, prompts, seed, teacher_share)


def test_mixed_answers_have_the_probabilities_of_both_models_and_of_their_mixture():
    student, teacher = network(eos_bias=3.0).train(), network("gpt2", vocab_size=VOCAB + 24)
    answers = mixed(student, teacher)
    assert student.training
    assert {answer.tokens[-1] == TOKENS.eos_token_id for answer in answers} == {True, False}
    student.eval()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.tokens]])
        new = torch.tensor(answer.tokens)
        log_p, log_q = (
            model(input_ids=ids)
            .logits[0, len(prompt) - 1 : -1, :VOCAB]
            .log_softmax(-1)
            .gather(1, new[:, None])[:, 0]
            for model in (teacher, student)
        )
        torch.testing.assert_close(answer.log_teacher, log_p.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answer.log_student, log_q.detach(), rtol=1e-4, atol=1e-4)
        mixture = (0.2 * log_p.exp() + 0.8 * log_q.exp()).log().detach()
        torch.testing.assert_close(answer.log_mixed, mixture, rtol=1e-4, atol=1e-4)
    for batch_size in (1, 3, 20):
        again = mixed(student, teacher, batch_size=batch_size)
        assert [answer.tokens for answer in again] == [answer.tokens for answer in answers]


def test_a_mixture_of_one_model_is_that_model():
    student, teacher = network(eos_bias=3.0), network("gpt2")
    for share, model in ((0.0, student), (1.0, teacher)):
        alone = Sampling(max_new_tokens=8).token_ids(model, TOKENS, PROMPTS, seed=1)
        answers = mixed(student, teacher, teacher_share=share)
        assert [[answer.tokens] for answer in answers] == alone
        other = answers[0].log_student if share == 0 else answers[0].log_teacher
        torch.testing.assert_close(answers[0].log_mixed, other)


def test_first_tokens_follow_the_mixture():
    student, teacher = network(initializer_range=1.0), network("gpt2", initializer_range=1.0)
    prompt, draws = PROMPTS[0], 4000
    answers = mixed(student, teacher, [prompt] * draws, teacher_share=0.5, max_new_tokens=1, batch_size=500)
    with torch.no_grad():
        p, q = (
            model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1) for model in (teacher, student)
        )
    r = (p + q) / 2
    counts = torch.bincount(torch.tensor([answer.tokens[0] for answer in answers]), minlength=VOCAB)
    likely = r.topk(5).indices
    assert bool(((counts[likely] / draws - r[likely]).abs() < 4 * (r[likely] / draws) ** 0.5).all())


def test_what_cannot_be_mixed_is_refused():
    model = network()
    with pytest.raises(InputError, match=r"teacher_share=1\.2 must be in \[0, 1\]"):
        mixed(model, model, teacher_share=1.2)
    with pytest.raises(InputError, match=r"generation\.top_k=3 must be 0 where models are mixed"):
        mixed(model, model, top_k=3)


@pytest.mark.parametrize("autocast", [False, True])
def test_log_probabilities_are_not_rounded_with_the_models_logits(autocast):
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**SMALL, **MLP, "initializer_range": 0.8, "hidden_size": 64})
    model = AutoModelForCausalLM.from_config(config).eval().bfloat16()
    weight = model.lm_head.weight.double()
    model = model.float() if autocast else model
    seen, errors, rounded = [], [], []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, -1]))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        fields = {"max_new_tokens": 6, "batch_size": 1}
        ids = Sampling(**fields).token_ids(model, TOKENS, PROMPTS, 1)
        for prompt, (tokens,), (answer,) in zip(PROMPTS, ids, drawn(model, **fields), strict=True):
            seen.clear()
            for n in range(len(tokens)):
                model(input_ids=torch.tensor([prompt + tokens[:n]]))
            logits = torch.stack(seen).bfloat16().double() @ weight.T
            exact, low = (
                x.log_softmax(-1)[range(len(tokens)), tokens] for x in (logits, logits.bfloat16().double())
            )
            errors.append(float((torch.tensor(answer.log_probs) - exact).abs().mean()))
            rounded.append(float((low - exact).abs().mean()))
    assert min(rounded) > 1e-3
    assert statistics.median(errors) < 1e-5  # some rows' states differ in bfloat16 with and without a cache


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.5, "top_k": 5, "no_repeat_ngram_size": 2}])
def test_log_probabilities_are_those_of_the_model_whatever_changed_the_drawing(fields):
    model = network("llama", eos_bias=1.0).double()
    ids = Sampling(max_new_tokens=12, batch_size=4, samples=2, **fields).token_ids(model, TOKENS, PROMPTS, 1)
    answers = drawn(model, samples=2, **fields)
    for prompt, of_prompt, row in zip(PROMPTS, ids, answers, strict=True):
        for tokens, answer in zip(of_prompt, row, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(answer.log_probs).double(), expected, rtol=0, atol=1e-5)
