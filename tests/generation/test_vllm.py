import dataclasses
import sys
import types

import pytest
import torch
from families import PROMPTS, TOKENS, network
from transformers import AutoModelForCausalLM

from amid.errors import InputError
from amid.generation.sampling import Sampling
from amid.generation.vllm import VLLMSampling

SETS = {"one": PROMPTS[:4], "two": [*PROMPTS[4:7], PROMPTS[4]]}


class StandIn:
    """What is used of the package, over transformers."""

    def __init__(self):
        self.engines, self.settings = [], []
        stand_in = self

        class LLM:
            def __init__(self, model, dtype, **given):
                stand_in.engines.append({"dtype": dtype, **given})
                self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))

            def generate(self, prompts, sampling_params, use_tqdm):
                stand_in.settings += sampling_params
                pairs = zip(prompts, sampling_params, strict=True)
                return [self.answer(prompt["prompt_token_ids"], params) for prompt, params in pairs]

            def answer(self, ids, params):
                assert params.ignore_eos
                ids, tokens, log_probs = list(ids), [], []
                while len(tokens) < params.max_tokens and not set(tokens) & set(params.stop_token_ids):
                    logits = self.model(torch.tensor([ids])).logits[0, -1].float()
                    tokens.append(int(logits.argmax()))
                    ids.append(tokens[-1])
                    log_prob = float(logits.log_softmax(-1).max())
                    log_probs.append({tokens[-1]: types.SimpleNamespace(logprob=log_prob)})
                output = types.SimpleNamespace(token_ids=tokens, logprobs=log_probs)
                return types.SimpleNamespace(outputs=[output])

        self.LLM, self.SamplingParams = LLM, types.SimpleNamespace


@pytest.fixture
def stand_in(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    return stand_in


def unhooked_network(**fields):
    """A model whose weights are all of it."""
    model = network(**fields)
    model.get_output_embeddings()._forward_hooks.clear()
    return model


@torch.inference_mode()
def test_answers_are_those_of_the_model(stand_in):
    model = unhooked_network()
    greedy = {"max_new_tokens": 12, "temperature": 0.0, "seeds": [10, 20]}
    actual = list(VLLMSampling(**greedy).answers_to_sets(model, TOKENS, SETS))
    expected = list(Sampling(**greedy).answers_to_sets(model, TOKENS, SETS))
    assert actual == expected
    assert [(name, seed) for name, _, seed, _ in actual] == [
        ("one", 10),
        ("one", 20),
        ("two", 10),
        ("two", 20),
    ]
    for (*_, rows), (*_, others) in zip(actual, expected, strict=True):
        for row, other in zip(rows, others, strict=True):
            assert row[0].log_probs == pytest.approx(other[0].log_probs, abs=1e-5)
    (engine,) = stand_in.engines
    assert engine["dtype"] == "float32"
    assert engine["max_model_len"] == 17 + 12


@torch.inference_mode()
def test_a_ladder_is_answered_by_one_engine(stand_in):
    sampling = VLLMSampling(max_new_tokens=2, seeds=[1, 2], temperatures=[1.0, 0.5], top_ps=[0.8, 1.0])
    drawn = [(rung, seed) for _, rung, seed, _ in sampling.answers_to_sets(unhooked_network(), TOKENS, SETS)]
    rungs = [None, ("temperature", 0.5), ("top_p", 0.8)]
    assert drawn == [(rung, seed) for _ in SETS for rung in rungs for seed in (1, 2)]
    assert len(stand_in.engines) == 1
    asked = {(params.temperature, params.top_p) for params in stand_in.settings}
    assert asked == {(1.0, 1.0), (0.5, 1.0), (1.0, 0.8)}
    seeds = {}
    for params in stand_in.settings:
        seeds.setdefault((params.temperature, params.top_p), []).append(params.seed)
    assert len({tuple(of) for of in seeds.values()}) == 1


def test_every_answer_has_a_seed_of_its_own_that_only_its_prompt_decides(stand_in, monkeypatch):
    monkeypatch.setattr(
        stand_in.LLM,
        "answer",
        lambda self, ids, params: types.SimpleNamespace(
            outputs=[
                types.SimpleNamespace(token_ids=[5], logprobs=[{5: types.SimpleNamespace(logprob=-1.0)}])
            ]
        ),
    )
    model = unhooked_network()

    def seeds(sets, **fields):
        stand_in.settings.clear()
        sampling = VLLMSampling(**{"max_new_tokens": 4, "seeds": [1, 2], "samples": 2, **fields})
        rows = list(sampling.answers_to_sets(model, TOKENS, sets))
        assert all(len(answers) == sampling.samples for *_, of_set in rows for answers in of_set)
        return [params.seed for params in stand_in.settings]

    drawn = seeds(SETS)
    assert len(set(drawn)) == len(drawn) == 2 * 2 * 8
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert seeds({"two": SETS["two"][:2]}, seeds=[1]) == drawn[16:20]


def test_products_are_of_the_precision_of_the_run(stand_in):
    model = unhooked_network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        list(VLLMSampling(max_new_tokens=1, temperature=0.0).answers_to_sets(model, TOKENS, SETS))
    assert stand_in.engines[0]["dtype"] == "bfloat16"


def test_what_vllm_does_not_have_or_load_is_refused(stand_in, monkeypatch):
    with pytest.raises(InputError, match="no_repeat_ngram_size=6 must be 0 with vLLM"):
        VLLMSampling(max_new_tokens=4, no_repeat_ngram_size=6)
    with pytest.raises(InputError, match=r"memory_share=1\.5 must be a number above 0, up to 1"):
        VLLMSampling(max_new_tokens=4, memory_share=1.5)

    def refuse(**given):
        raise ValueError("Model architectures ['Bloom']\nare not supported")

    monkeypatch.setattr(stand_in, "LLM", refuse)
    sampling = VLLMSampling(max_new_tokens=4)
    with pytest.raises(
        InputError, match=r"does not load the student: Model architectures \['Bloom'\] are not"
    ):
        list(sampling.answers_to_sets(unhooked_network(), TOKENS, SETS))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install 'amid-distill\[vllm\]'"):
        list(sampling.answers_to_sets(unhooked_network(), TOKENS, SETS))


@torch.inference_mode()
def test_vllm_itself():
    pytest.importorskip("vllm", reason="no vLLM here: pip install -e '.[vllm]'")
    model = unhooked_network(hidden_size=64, num_key_value_heads=2, intermediate_size=64)
    greedy = VLLMSampling(max_new_tokens=12, temperature=0.0, seeds=[10])
    actual = list(greedy.answers_to_sets(model, TOKENS, SETS))
    expected = list(
        Sampling(max_new_tokens=12, temperature=0.0, seeds=[10]).answers_to_sets(model, TOKENS, SETS)
    )
    assert actual == expected
    for (*_, rows), (*_, others) in zip(actual, expected, strict=True):
        for row, other in zip(rows, others, strict=True):
            assert row[0].log_probs == pytest.approx(other[0].log_probs, abs=1e-3)
    sampled = dataclasses.replace(greedy, temperature=1.0, samples=400)
    ((_, _, _, (drawn,)),) = sampled.answers_to_sets(model, TOKENS, {"one": PROMPTS[:1]})
    log_probs = torch.tensor([answer.log_probs[0] for answer in drawn])
    logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert -log_probs.mean() == pytest.approx(float(entropy), abs=0.3)


def test_a_student_on_another_gpu_than_the_first_is_refused(stand_in, monkeypatch):
    model = network()
    monkeypatch.setattr(type(model), "device", torch.device("cuda:1"))
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES=1, with trainer\.devices=1"):
        next(VLLMSampling(max_new_tokens=2).answers_to_sets(model, TOKENS, SETS))
