import copy
import itertools
import json
import logging
import math

import pytest
import torch
from gguf_files import write_gguf
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import flash_attention_mask

from amid.data.builtin import tokenizer
from amid.errors import InputError
from amid.models.counted_states import CountedStates, check_takes_packed, split_head
from amid.models.layers import keep_layers
from amid.models.source import ModelSource, load_tokenizer
from amid.models.vocabulary import check_same_tokens, output_rows, shared_vocabulary

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 1000}
FAMILIES = {
    "llama": {"intermediate_size": 32, "tie_word_embeddings": True},
    "gpt2": {},
    "qwen2": {"intermediate_size": 32, "num_key_value_heads": 1},
    "gemma2": {
        "intermediate_size": 32,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "final_logit_softcapping": 2.0,
    },
    "granite": {"intermediate_size": 32, "logits_scaling": 7.0},
    "cohere": {"intermediate_size": 32, "logit_scale": 0.3},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
}


def model(family, **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **fields})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_counted_logits_are_the_models_own(family):
    network = model(family)
    ids = torch.randint(2, 1000, (3, 7))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    positions = (torch.rand(3, 7) > 0.5) & mask.bool()
    states = CountedStates(network)
    torch.testing.assert_close(
        states.logits(ids, positions),
        network(input_ids=ids, attention_mask=mask).logits[positions],
        rtol=1e-4,
        atol=1e-4,
    )
    assert states.head is not None


def packed_and_apart(network):
    """Logits of three packed sequences, and of each alone, at all their tokens."""
    states, ids = CountedStates(network), torch.randint(2, 1000, (1, 40))
    parts = ids.split([13, 2, 25], 1)
    places = torch.cat([torch.arange(part.shape[1]) for part in parts]).unsqueeze(0)
    packed = states.logits(ids, torch.ones_like(ids, dtype=torch.bool), places)
    return packed, torch.cat([states.logits(part, torch.ones_like(part, dtype=torch.bool)) for part in parts])


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("opt", "gpt_neo")])
def test_packed_rows_are_to_a_model_as_rows_of_their_own(family):
    fields = {"sliding_window": 5} if family in ("qwen2", "gemma2") else {}
    packed, apart = packed_and_apart(model(family, **fields))
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "gpt_neo", "bloom", "mamba"])
def test_models_that_do_not_keep_packed_rows_apart_are_refused(family):
    network = model(family).train()
    with pytest.raises(InputError, match=f"{type(network).__name__} does not keep packed rows apart"):
        check_takes_packed(network)
    assert network.training


def test_flash_attention_takes_the_lengths_of_packed_rows():
    """A stand-in with the interface of FlashAttention, whose only knowledge of the borders is the lengths."""

    def attention(module, query, key, value, mask, scaling, cu_seq_lens_q=None, max_length_q=None, **_):
        ends = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
        assert max_length_q is None or max_length_q == max(b - a for a, b in itertools.pairwise(ends))
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(of[:, :, a:b] for of in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
            )
            for a, b in itertools.pairwise(ends)
        ]
        return torch.cat(parts, 2).transpose(1, 2), None

    AttentionInterface.register("flash_on_cpu", attention)
    AttentionMaskInterface.register("flash_on_cpu", flash_attention_mask)
    network = model("llama")
    network.config._attn_implementation = "flash_on_cpu"
    seen = []
    network.model.register_forward_pre_hook(lambda of, _: seen.append(of.config._attn_implementation))
    CountedStates(network)
    assert set(seen) == {"eager"}  # while the weights wait on a CPU, as for FSDP
    assert network.config._attn_implementation == "flash_on_cpu"
    torch.testing.assert_close(*packed_and_apart(network), rtol=1e-4, atol=1e-5)


def test_attention_is_computed_as_asked_for():
    llama = {"model_type": "llama", "intermediate_size": 32, **SIZES}
    eager = ModelSource(architecture=llama, attention="eager").load(tokenizer())
    assert eager.config._attn_implementation == "eager"
    gpt_neo = {"model_type": "gpt_neo", **FAMILIES["gpt_neo"], **SIZES}
    for architecture, attention in ((llama, "nonsense"), (gpt_neo, "sdpa")):
        with pytest.raises(InputError, match=f"attention={attention} cannot be had for .* use null"):
            ModelSource(architecture=architecture, attention=attention).load(tokenizer())
    with pytest.raises(InputError, match="model attention=1 must be"):
        ModelSource(architecture=llama, attention=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_found_in_every_dtype(family, dtype):
    network = model(family).to(dtype)
    states = CountedStates(network)
    assert states.head is not None
    ids, positions = torch.arange(2, 8).view(2, 3), torch.ones(2, 3, dtype=torch.bool)
    logits = states.logits(ids, positions)
    assert logits.dtype == torch.float32
    theirs = network(input_ids=ids).logits[positions].float()
    torch.testing.assert_close(logits, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))


@pytest.mark.parametrize("shape", [lambda x: 30 * torch.tanh(x / 30), lambda x: x.clamp(-50, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_of_unknown_name_is_found_where_logits_are_small(monkeypatch, dtype, shape):
    network = model("llama", initializer_range=1e-3).to(dtype)
    plain = network.lm_head.forward
    assert float(network(input_ids=torch.arange(2, 8).view(2, 3)).logits.abs().max()) < 0.1
    assert split_head(network) is not None
    monkeypatch.setattr(network.lm_head, "forward", lambda x: shape(plain(x)))
    assert split_head(network) is None
    assert not network.lm_head._forward_pre_hooks


def test_recurrent_gemmas_cap_is_known():
    fields = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "lru_width": 16, "head_dim": 8}
    config = AutoConfig.for_model("recurrent_gemma", **fields, logits_soft_cap=3.0)
    network = AutoModelForCausalLM.from_config(config).eval()
    assert split_head(network).softcap == 3.0


def test_kept_layers_are_those_of_the_original():
    network = model("llama")
    original = copy.deepcopy(network)
    keep_layers(network, [0, 2])
    assert network.config.num_hidden_layers == 2
    kept = network.base_model.layers
    for mine, theirs in zip(kept, (original.base_model.layers[i] for i in (0, 2)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    ids = torch.randint(2, 1000, (2, 5))
    out = network.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    uncached = network.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False, eos_token_id=None)
    assert torch.equal(out, uncached)
    with pytest.raises(InputError, match=r"layers=\[5\]: choose indices from 0 to 1"):
        keep_layers(network, [5])


def test_lists_of_the_configuration_keep_what_belongs_to_the_kept_layers():
    network = model("llama")
    network.config.no_rope_layers = [1, 0, 1]
    network.config.of_something_else = [1, 2]
    keep_layers(network, [1, 2])
    assert network.config.no_rope_layers == [0, 1]
    assert network.config.of_something_else == [1, 2]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_a_pruned_model_is_saved_and_loaded(tmp_path, family):
    network = model(family)
    keep_layers(network, [1])
    network.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    again = ModelSource(path=str(tmp_path)).load(load_tokenizer(str(tmp_path)))
    ids = torch.randint(2, 1000, (1, 4))
    torch.testing.assert_close(again(ids).logits, network(ids).logits)
    assert again.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 6)


def test_layers_that_the_configuration_cannot_tell_are_not_pruned():
    more = {"num_experts": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    network = model("qwen2_moe", num_key_value_heads=2, mlp_only_layers=[0], **more)
    with pytest.raises(InputError, match=r"layers=\[1, 2\]: the configuration of qwen2_moe cannot say"):
        keep_layers(network, [1, 2])


def test_a_gguf_file_is_loaded_pruned_and_saved(tmp_path, hub):
    write_gguf(tmp_path / "small.gguf")
    network = ModelSource(path=str(tmp_path / "small.gguf"), layers=[1]).load(tokenizer())
    network.save_pretrained(tmp_path / "saved")
    again = ModelSource(path=str(tmp_path / "saved")).load(tokenizer())
    ids = torch.randint(2, 1000, (1, 4))
    torch.testing.assert_close(again(ids).logits, network(ids).logits)
    assert again.config.num_hidden_layers == 1
    commit = hub.add("owner/name", {"small.gguf": (tmp_path / "small.gguf").read_bytes()}, revision="v2")
    of_hub = ModelSource(path="owner/name@v2/small.gguf", layers=[1])
    torch.testing.assert_close(of_hub.load(tokenizer())(ids).logits, network(ids).logits)
    assert of_hub.fingerprint()["weights"] == f"{commit}/small.gguf"
    with pytest.raises(InputError, match=r"path='owner/none/small\.gguf' is neither here nor at http"):
        ModelSource(path="owner/none/small.gguf").load(tokenizer())


def test_weights_of_another_architecture(tmp_path):
    model("gpt2").save_pretrained(tmp_path)
    model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="another architecture"):
        ModelSource(path=str(tmp_path)).load(tokenizer())


def test_weights_of_a_deeper_model(tmp_path):
    model("gpt2").save_pretrained(tmp_path)
    model("gpt2", num_hidden_layers=2).config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="another architecture"):
        ModelSource(path=str(tmp_path)).load(tokenizer())


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    network = model("gpt2")
    network.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise SystemExit\n")
    for name, what, classes in (
        ("tokenizer_config.json", "tokenizer", {"AutoTokenizer": [None, "own.Tokens"]}),
        ("config.json", "model", {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
    ):
        file = tmp_path / name
        told = json.loads(file.read_text()) | {"auto_map": classes}
        told |= {"tokenizer_class": "Own"} if what == "tokenizer" else {"model_type": "own"}
        file.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"tokenizer path=.* needs code of its own"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(InputError, match=r"model path=.* needs code of its own"):
        ModelSource(path=str(tmp_path)).config(tokenizer())
    with pytest.raises(InputError, match=r"model path=.* needs code of its own"):
        ModelSource(path=str(tmp_path)).load(tokenizer())
    assert not ran.exists()


def test_rows_without_a_mask_need_no_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    network = model("gpt2", pad_token_id=5)
    ids = torch.tensor([[3, 4, 5], [5, 3, 4]])
    states = CountedStates(network)
    states.logits(ids, ids > 0)
    monkeypatch.setattr(CountedStates, "head", None)
    states.logits(ids, ids > 0)
    assert "attention_mask" not in caplog.text
    network(input_ids=ids)
    assert "attention_mask" in caplog.text
    assert network.config.pad_token_id == 5


def test_nothing_at_the_path():
    with pytest.raises(InputError, match=r"model path='no/where' is no folder here"):
        ModelSource(path="no/where").load(tokenizer())
    with pytest.raises(InputError, match=r"'x.gguf' does not exist"):
        load_tokenizer("x.gguf")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model_type": "llama", "hidden_sise": 64},
            "architecture.hidden_sise=64: a configuration of model_type=llama has no such field; did you "
            "mean 'hidden_size'?",
        ),
        ({"model_type": "gpt2", "n_layers": 2}, "has no such field; did you mean 'n_layer'?"),
        ({"model_type": "qwen3", "zzz": [1]}, r"architecture.zzz=\[1\]: .* its fields are .*head_dim"),
        (
            {"model_type": "mpt", "attn_config": {"alibi": True, "alibi_bias": 8}},
            "architecture.attn_config.alibi_bias=8: .* did you mean 'alibi_bias_max'?",
        ),
        (
            {"model_type": "gemma3", "text_config": {"hiden_size": 64}},
            "architecture.text_config.hiden_size=64: .* did you mean 'hidden_size'?",
        ),
    ],
)
def test_a_field_that_a_configuration_does_not_have(given, message):
    with pytest.raises(InputError, match=message):
        ModelSource(architecture=given).config(tokenizer())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads=3 does not divide architecture.num_attention_heads=2",
        ),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 does not divide"),
        ({"head_dim": 0}, "is not usable: 0.0 cannot be raised"),
        ({"pad_token_id": 99999}, "is not usable: Padding_idx must be within"),
        ({"dtype": "foo"}, "is not usable: module 'torch' has no attribute 'foo'"),
        ({"hidden_act": "foo"}, "is not usable: 'foo'"),
        ({"attention_dropout": 2}, "architecture.attention_dropout=2 must be a number from 0, below 1"),
        (
            {"attention_dropout": math.nan},
            "architecture.attention_dropout=nan must be a number from 0, below",
        ),
        ({"rms_norm_eps": math.nan}, "architecture.rms_norm_eps is NaN; give it a number"),
        ({"save_pretrained": 1}, "architecture.save_pretrained=1: .* has no such field"),
        ({"vocab_size": 10}, "has 10 token embeddings and the tokenizer"),
    ],
)
def test_values_of_a_configuration_that_make_no_model(given, message):
    source = ModelSource(architecture={"model_type": "llama", **SIZES, **FAMILIES["llama"], **given})
    with pytest.raises(InputError, match=message):
        source.check_rows(source.skeleton(source.config(tokenizer())), tokenizer())


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (
            {"model_type": "gpt2", "hidden_size": 32, "num_attention_heads": 4, "num_labels": 3},
            {"n_embd": 32, "n_head": 4, "num_labels": 3},
        ),
        (
            {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "float32"},
            {"model_type": "llama", "dtype": torch.float32},
        ),
        (
            {"model_type": "mistral", "sliding_window": None, "_attn_implementation": "eager"},
            {"sliding_window": None, "_attn_implementation": "eager"},
        ),
    ],
)
def test_other_names_of_fields_that_transformers_takes(given, read):
    config = ModelSource(architecture=given).config(tokenizer())
    assert {name: getattr(config, name) for name in read} == read


@pytest.mark.parametrize("field", ["rms_norm_eps", "attention_dropout", "rope_parameters"])
def test_a_stored_configuration_with_nan(tmp_path, field):
    config = model("llama").config.to_dict()
    config[field] = {**config[field], "rope_theta": math.nan} if field == "rope_parameters" else math.nan
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"model path=.*: {field}\S* of its config.json is NaN"):
        ModelSource(path=str(tmp_path)).config(tokenizer())


def test_settings_that_do_not_fit():
    with pytest.raises(InputError, match="exactly one"):
        ModelSource()
    with pytest.raises(InputError, match=r"dtype=int3 must be float32, bfloat16 or float16"):
        ModelSource(path="x", dtype="int3")
    small = {"model_type": "llama", **SIZES, **FAMILIES["llama"], "vocab_size": 10}
    with pytest.raises(InputError, match="10 token embeddings"):
        ModelSource(architecture=small).load(tokenizer())


def test_vocabularies():
    teacher, student = model("llama"), model("llama", vocab_size=1010)
    same = tokenizer()
    assert shared_vocabulary(output_rows(teacher), teacher) is None
    assert shared_vocabulary(output_rows(teacher), student) == 1000
    check_same_tokens("student", same, tokenizer())
    other = tokenizer()
    other.add_tokens(["<new>"])
    with pytest.raises(
        InputError, match=r"token '<new>' is None in model.tokenizer and 1000 in the student's"
    ):
        check_same_tokens("student", same, other)
