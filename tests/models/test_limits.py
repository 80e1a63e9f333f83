"""Limits of a model: texts longer than its positions, and models that read both ways."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from amid.cli.main import main
from amid.errors import InputError
from amid.models.limits import check_ignores_what_follows, check_lengths, check_reads_forwards

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 100}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WITH_TABLES = {
    "gpt2": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "biogpt": {"intermediate_size": 32},
    "gptj": {"rotary_dim": 4},
    "mpt": {"max_seq_len": 24},
    "roberta": {"max_position_embeddings": 25, "is_decoder": True, "intermediate_size": 32},
    "gpt_neo": {"num_layers": 1, "attention_types": [[["global"], 1]], "num_heads": 2},
}
ROTARY = {
    "llama": {"intermediate_size": 32},
    "qwen3": {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8},
    "gpt_neox": {"intermediate_size": 32},
}


def model(family, **fields):
    sizes = {} if family == "gpt_neo" else SIZES
    sizes = sizes or {"hidden_size": 16, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**sizes, "max_position_embeddings": 24, **fields})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", WITH_TABLES)
def test_more_tokens_than_positions_are_refused_with_both_numbers(family):
    network = model(family, **WITH_TABLES[family])
    check_lengths("it", network, {"data.max_length=24": 24})
    network(torch.ones(1, 24, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        network(torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(InputError, match=r"data.max_length=25 makes texts of up to 25 tokens.* only 24 posi"):
        check_lengths("it", network, {"data.max_length=25": 25})


@pytest.mark.parametrize("family", ROTARY)
def test_more_tokens_than_were_trained_on_are_a_warning(family, capsys):
    network = model(family, **ROTARY[family])
    network(torch.ones(1, 25, dtype=torch.long))
    check_lengths(family, network, {"data.max_length=24": 24})
    assert not capsys.readouterr().out
    check_lengths(family, network, {"data.max_length=25": 25})
    check_lengths(family, network, {"data.max_length=25": 25})
    assert capsys.readouterr().out.count(f"25 tokens, and {family} was made for 24 positions") == 1


def test_stretched_rotary_embeddings_count(capsys):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 1e4}
    network = model("llama", **ROTARY["llama"], rope_parameters=rope)
    check_lengths("stretched", network, {"data.max_length=96": 96})
    assert not capsys.readouterr().out
    check_lengths("stretched", network, {"data.max_length=97": 97})
    assert "was made for 96 positions" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["bert", "roformer", "megatron-bert", "xlm"])
def test_models_that_read_both_ways_are_refused(family):
    network = model(family, intermediate_size=32)
    with pytest.raises(InputError, match="reads a text from both ends"):
        check_ignores_what_follows(network)
    if family != "xlm":  # of which only its states tell
        with pytest.raises(InputError, match=r"it \(.*\) reads a text from both ends"):
            check_reads_forwards("it", network)


def test_models_that_read_forwards_are_taken():
    for family, fields in (WITH_TABLES | ROTARY | {"bert": {"is_decoder": True}, "bloom": {}}).items():
        network = model(family, **fields)
        check_reads_forwards("it", network)
        check_ignores_what_follows(network)


def test_an_encoder_with_a_decoder_is_refused():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 100}
    with torch.device("meta"):
        network = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **sizes))
    with pytest.raises(InputError, match=r"it is an encoder with a decoder \(t5\)"):
        check_reads_forwards("it", network)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.max_length=300"], r"data.max_length=300 makes texts of up to 300 tokens, and the student"),
        (
            ["generation.max_new_tokens=200"],
            "with generation.max_new_tokens=200 makes texts of up to 263 tok",
        ),
        (
            ["text=student", "text.max_new_tokens=201"],
            "with text.max_new_tokens=201 makes texts of up to 265",
        ),
    ],
    ids=["data", "generation", "text"],
)
def test_a_run_is_refused_before_anything_is_prepared(settings, words, small_run, tmp_path, capsys):
    student = "model.student.architecture={model_type: gpt2, hidden_size: 16, num_hidden_layers: 1}"
    more = [
        "model.student.architecture.max_position_embeddings=256",
        "~model.student.architecture.intermediate_size",  # which gpt2 does not have
        "data.max_prompt_length=64",
        "data.max_length=128",
    ]
    assert main(["train", *small_run, student, *more, *settings]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert "(gpt2) has only 256 positions; lower it to 256 at most" in err
    assert not list(tmp_path.glob("prepared/*"))
