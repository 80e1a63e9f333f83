"""Settings that are read back from the folder of a run: values, never code."""

import os

import pytest
import yaml

from amid.config.run_settings import (
    Stored,
    _is_deeper_than_weights,
    read_settings,
    recorded_hash,
    shipped,
    write_settings,
)
from amid.errors import Damaged, InputError
from amid.files import yaml_with_sum

METRIC = {"_target_": "amid.metrics.rouge_l", "_partial_": True}
CORPUS = {"_target_": "amid.data.builtin.corpus", "split": "test"}
TEMPLATE = {
    "_target_": "amid.data.Template",
    "without_input": "{instruction}",
    "with_input": "{input}",
    "chat": None,
}
DATA = {
    "_target_": "amid.data.InstructionData",
    "train": CORPUS,
    "test": {"mine": CORPUS, "file": "my/test.jsonl"},
    "template": TEMPLATE,
    "metrics": {"of_mine": METRIC},
}


@pytest.fixture
def stored(tmp_path):
    return Stored(tmp_path, False, "trust_run=true")


def test_what_amid_ships_is_taken(stored):
    stored.check(DATA, "data")
    stored.check({"_target_": "amid.generation.Sampling", "seeds": [1, 2]}, "generation")
    stored.check({"_target_": "lightning.Trainer", "precision": "32-true"}, "trainer")
    stored.check({"rouge_l": METRIC}, "data", "metrics")


def test_all_of_conf_is_taken_at_its_place():
    places = shipped()
    assert ("torch.optim.AdamW", True) in places["optimizer"]
    assert places["train"] == places["valid"] == places["test.*"]
    assert all(
        target.split(".")[0] in ("amid", "lightning", "torch", "wandb")
        for entries in places.values()
        for target, _ in entries
    )


CODE = "os.system"


@pytest.mark.parametrize(
    ("node", "at"),
    [
        ({**DATA, "_target_": CODE, "command": "true"}, "data._target_=os.system"),
        ({**DATA, "_target_": "amid.data.builtin.corpus"}, "data._target_=amid.data.builtin.corpus"),
        ({**DATA, "_target_": ["os", "system"]}, "data._target_="),
        ({**DATA, "_target_": None}, "data._target_=None"),
        ({**DATA, "_partial_": True}, "data._target_="),
        ({**DATA, "_args_": ["id"]}, "data._args_="),
        ({**DATA, "_recursive_": False}, "data._recursive_="),
        ({**DATA, "_convert_": "all"}, "data._convert_="),
        ({**DATA, "train": {"_target_": CODE}}, "data.train._target_="),
        ({**DATA, "train": METRIC}, "data.train._target_=amid.metrics.rouge_l"),
        ({**DATA, "test": {"a": {"_target_": "pandas.read_pickle"}}}, "data.test.a._target_="),
        ({**DATA, "test": {"a": {**CORPUS, "size": {"_target_": CODE}}}}, "data.test.a.size._target_="),
        ({**DATA, "test": {"a": [{"_target_": CODE}]}}, "data.test.a.0._target_="),
        ({**DATA, "test": {"_target_": CODE}}, "data.test._target_="),
        ({**DATA, "fields": {"_target_": CODE}}, "data.fields._target_="),
        ({**DATA, "seed": [[{"_target_": CODE}]]}, "data.seed.0.0._target_="),
        ({**DATA, "metrics": {"a": {**METRIC, "_partial_": False}}}, "data.metrics.a._target_="),
        ({**DATA, "metrics": {"a": {**METRIC, "_partial_": "true"}}}, "data.metrics.a._target_="),
        (
            {**DATA, "metrics": {"a": {"_target_": "amid.files.write_json", "_partial_": True}}},
            "data.metrics.a",
        ),
        ({**DATA, "metrics": {"a": {"_target_": "amid.metrics.quality.os.system"}}}, "data.metrics.a"),
        ({**DATA, "metrics": {"a": {"_target_": "hydra.utils.get_object"}}}, "data.metrics.a._target_="),
        ({**DATA, "metrics": {"a": {**METRIC, "of": {"_target_": CODE}}}}, "data.metrics.a.of._target_="),
        ({**DATA, "template": {**TEMPLATE, "chat": {"_target_": CODE}}}, "data.template.chat._target_="),
    ],
)
def test_code_is_refused_wherever_it_is_named(stored, node, at):
    with pytest.raises(
        InputError, match=r"no code that it names is run; if you trust .*: trust_run=true"
    ) as error:
        stored.check(node, "data")
    assert f"config.yaml: {at}" in str(error.value)
    Stored(stored.directory, True, "").check(node, "data")


@pytest.mark.parametrize(
    "node",
    [
        {**DATA, "seed": "${oc.env:HOME}"},
        {**DATA, "test": {"a": "data/${oc.env:AWS_SECRET_ACCESS_KEY}.jsonl"}},
        {**DATA, "test": {"${oc.env:HOME}": "a.jsonl"}},
        {**DATA, "fields": ["${run_dir:}"]},
        {**DATA, "template": {**TEMPLATE, "with_input": "\\${oc.env:HOME}{input}"}},
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_nothing_is_resolved(tmp_path, node, trusted):
    with pytest.raises(InputError, match=r"interpolation .*, and none in the folder of a run is resolved"):
        Stored(tmp_path, trusted, "").check(node, "data")


@pytest.mark.parametrize(
    "text", ["{instruction.__class__}", "{instruction:>999999999}", "{instruction!r:>9}", "{input[0]}", "{}"]
)
def test_a_prompt_has_its_own_fields_alone(stored, text):
    with pytest.raises(InputError, match="has other fields than"):
        stored.check({**DATA, "template": {**TEMPLATE, "with_input": f"{{instruction}}{text}"}}, "data")
    stored.check({**DATA, "template": {**TEMPLATE, "with_input": "{{literal}} {input}"}}, "data")


def test_data_are_files(stored, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", f"{tmp_path / 'pipe'}[:3]", "/dev/zero"):
        for given in (str(path), [str(tmp_path), str(path)]):
            with pytest.raises(InputError, match="is no file of data"):
                stored.check({**DATA, "test": {"a": given}}, "data")
            with pytest.raises(InputError, match="is no file of data"):
                stored.check({**DATA, "train": given}, "data")
    stored.check({**DATA, "train": [str(tmp_path)]}, "data")


def test_settings_come_back_as_they_were(tmp_path):
    assert read_settings(tmp_path) is None
    assert recorded_hash(tmp_path) is None
    settings = {
        "lr": 1e-7,
        "big": 1e22,
        "dates": "2024-07-26",
        "no": "no",
        "number": "1e5",
        "t": "a * b\n#",
        "n": None,
    }
    write_settings({"config": settings}, tmp_path, "12345678901e")
    assert read_settings(tmp_path) == settings
    assert recorded_hash(tmp_path) == "12345678901e"
    assert list(yaml.safe_load((tmp_path / "config.yaml").read_text())) == ["checksum", "hash", "config"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"hash: h",
        b"config: [",
        b"3",
        b"hash: [1]\nconfig: {}",
        b"config: text",
        b"config: !!python/object/apply:os.getcwd []",
        b"config: {a: &a [1], b: *a}",
        yaml_with_sum("hash: h\nconfig: {seed: 1}\n").replace("seed: 1", "seed: 2").encode(),
    ],
)
def test_what_is_no_config_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    for read in (read_settings, recorded_hash):
        with pytest.raises(Damaged, match=r"config\.yaml is damaged \(.*\); put the file back") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_layers_are_in_the_weights(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3000))
    assert not _is_deeper_than_weights(("num_hidden_layers",), 30, [weights])
    assert not _is_deeper_than_weights(("num_attention_heads",), 10**9, [weights])
    for keys in (("num_hidden_layers",), ("text_config", "num_hidden_layers"), ("n_layer",)):
        assert _is_deeper_than_weights(keys, 10**9, [weights])
