"""The hub: if it does not answer, only its cache is used."""

import json
from pathlib import Path

import huggingface_hub
import peft
import pytest
import torch
from hub_server import Token
from huggingface_hub import constants
from small_models import network

from amid.data.builtin import tokenizer
from amid.data.sources import load_examples
from amid.errors import InputError
from amid.models import hub as of_models
from amid.models.source import ModelSource, load_tokenizer

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(of_models, "_asked", {})


@pytest.mark.usefixtures("silent_hub")
@pytest.mark.parametrize(
    "asked",
    [lambda: load_tokenizer("owner/name"), lambda: load_examples("hf://datasets/owner/name/file.jsonl")],
)
def test_a_file_that_is_not_in_the_cache_is_missed_at_once(asked, monkeypatch, capfd):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(InputError, match="the hub does not answer, and its cache has none"):
        asked()
    assert not slept
    assert "Retrying" not in capfd.readouterr().err


@pytest.mark.usefixtures("silent_hub")
def test_its_cache_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    place = tmp_path / "datasets--owner--name"
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    row = '{"instruction": "Say yes.", "output": "Yes."}\n'
    (place / "snapshots" / ("0" * 40) / "file.jsonl").write_text(row)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("asked again"))
    (example,) = load_examples("hf://datasets/owner/name/file.jsonl")
    assert example.outputs == ("Yes.",)


@pytest.mark.usefixtures("silent_hub")
def test_what_is_in_the_cache_and_cannot_be_used_is_told_as_such(monkeypatch, tmp_path):
    place = tmp_path / "models--owner--name"
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40) / "config.json").write_text('{"model_type": "of_tomorrow"}')
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="model type `of_tomorrow`"):
        ModelSource("owner/name").config(None)
    with pytest.raises(InputError, match="the hub does not answer, and its cache has none"):
        ModelSource("owner/other").config(None)


def test_an_hf_hub_offline_of_the_user_is_told_as_such(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(of_models, "_asked", {})
    with pytest.raises(InputError, match="HF_HUB_OFFLINE keeps from asking the hub, and its cache has none"):
        load_tokenizer("owner/name")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model with its tokenizer, as `save_pretrained` writes them."""
    network().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_of_the_hub_is_the_model_of_its_folder(hub, folder):
    hub.add("owner/name", folder)
    source = ModelSource("owner/name")
    tok = load_tokenizer("owner/name")
    assert tok.get_vocab() == load_tokenizer(str(folder)).get_vocab()
    of_hub, of_folder = source.load(tok).state_dict(), ModelSource(str(folder)).load(tok).state_dict()
    assert of_hub.keys() == of_folder.keys()
    assert all(torch.equal(of_hub[name], of_folder[name]) for name in of_hub)
    assert len(hub.asked("GET", "model.safetensors")) == 1


def test_a_revision_is_a_model_of_its_own(hub, folder, tmp_path):
    first = hub.add("owner/name", folder)
    network(seed=1).save_pretrained(tmp_path / "other")
    tokenizer().save_pretrained(tmp_path / "other")
    second = hub.add("owner/name", tmp_path / "other", revision="v2")
    weights = {}
    for path, commit in {
        "owner/name": first,
        "owner/name@v2": second,
        f"owner/name@{first}": first,
    }.items():
        tok = load_tokenizer(path)
        weights[path] = ModelSource(path).load(tok).get_input_embeddings().weight
        assert ModelSource(path).fingerprint()["weights"] == commit
    assert torch.equal(weights["owner/name"], weights[f"owner/name@{first}"])
    assert torch.equal(weights["owner/name@v2"], network(seed=1).get_input_embeddings().weight)
    assert not torch.equal(weights["owner/name"], weights["owner/name@v2"])
    with pytest.raises(InputError) as refused:
        ModelSource("owner/name@v3").config(None)
    assert str(refused.value) == (
        "model path='owner/name@v3' has a revision that does not exist; choose a branch, tag or commit from "
        f"{hub.url}/owner/name/commits"
    )


def test_a_gated_model_says_where_to_accept_its_licence(hub, folder, monkeypatch):
    hub.add("owner/name", folder, gated=True)
    hub.tokens = {"hf_stranger": Token("me"), "hf_accepted": Token("me", accepted={"owner/name"})}
    line = (
        f"path='owner/name' is gated: accept its licence at {hub.url}/owner/name, and log in with "
        "`hf auth login` or set HF_TOKEN"
    )
    for token in (None, "hf_stranger"):
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError) as refused:
            load_tokenizer("owner/name")
        assert str(refused.value) == f"tokenizer {line}"
        with pytest.raises(InputError) as refused:
            ModelSource("owner/name").config(None)
        assert str(refused.value) == f"model {line}"
        with pytest.raises(InputError, match="is gated: accept its licence"):
            ModelSource("owner/name").fingerprint()
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert ModelSource("owner/name").load(load_tokenizer("owner/name")).dtype == torch.float32


def test_a_model_that_is_not_there_is_told_in_a_line(hub):
    with pytest.raises(InputError) as refused:
        ModelSource("owner/nobody").config(None)
    assert str(refused.value) == (
        f"model path='owner/nobody' is neither here nor at {hub.url}/owner/nobody; check the name, or log in "
        "with `hf auth login` if it is private"
    )


def test_a_download_that_breaks_off_goes_on_where_it_ended(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("owner/name", folder)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut("model.safetensors", after=10_000)
    tok = load_tokenizer("owner/name")
    model = ModelSource("owner/name").load(tok)
    assert torch.equal(model.lm_head.weight, ModelSource(str(folder)).load(tok).lm_head.weight)
    ranges = [of.get("range") for method, path, of in hub.requests if (method, path[-5:]) == ("GET", "nsors")]
    assert ranges == [None, "bytes=10000-"]


def test_after_a_failed_download_the_files_that_are_there_are_not_asked_for_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    network().save_pretrained(tmp_path / "model", max_shard_size="60KB")
    tokenizer().save_pretrained(tmp_path / "model")
    shards = sorted(file.name for file in (tmp_path / "model").glob("*.safetensors"))
    hub.add("owner/name", tmp_path / "model")
    hub.cut(shards[-1], after=0, times=10**6)
    tok = load_tokenizer("owner/name")
    with pytest.raises(InputError) as failed:
        ModelSource("owner/name").load(tok)
    assert str(failed.value).startswith(f"model path='owner/name' could not be downloaded from {hub.url} (")
    assert str(failed.value).endswith("run the command again: it keeps the files that have arrived")
    hub.cuts.clear()
    before = len(hub.requests)
    model = ModelSource("owner/name").load(tok)
    assert torch.equal(model.lm_head.weight, network().lm_head.weight)
    again = [path for method, path, _ in hub.requests[before:] if (method, path[-5:]) == ("GET", "nsors")]
    assert [path.rpartition("/")[2] for path in again] == [shards[-1]]


def test_without_a_network_a_model_comes_from_the_cache(hub, folder, monkeypatch):
    hub.add("owner/name", folder, revision="v2")
    asked = ModelSource("owner/name@v2").load(load_tokenizer("owner/name@v2")).lm_head.weight
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = ModelSource("owner/name@v2")
    assert torch.equal(source.load(load_tokenizer("owner/name@v2")).lm_head.weight, asked)
    assert source.fingerprint()["weights"] == hub.repositories["model", "owner/name"].branches["v2"]
    assert not hub.requests
    with pytest.raises(InputError, match="HF_HUB_OFFLINE keeps from asking the hub, and its cache has none"):
        ModelSource("owner/name").config(None)


@pytest.mark.parametrize("place", ["folder", "hub", "hub@revision"])
def test_adapters_are_merged_into_the_model_that_they_name(hub, folder, tmp_path, place):
    hub.add("owner/name", folder)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        ModelSource(str(folder)).load(tokenizer()),
        peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False),
    )
    adapted.peft_config["default"].base_model_name_or_path = "owner/name"
    adapted.save_pretrained(tmp_path / "adapters")
    assert not (tmp_path / "adapters" / "config.json").exists()
    hub.add("owner/adapters", tmp_path / "adapters", revision="v2" if "@" in place else "main")
    path = {"folder": str(tmp_path / "adapters"), "hub": "owner/adapters"}.get(place, "owner/adapters@v2")
    source, tok = ModelSource(path), load_tokenizer(path)
    assert tok.get_vocab() == tokenizer().get_vocab()
    assert source.skeleton(source.config(tok)).config.hidden_size == 16
    merged = source.load(tok)
    ids = torch.tensor([[1, 2, 3]])
    adapted.eval()
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits)
    assert (merged(ids).logits - ModelSource(str(folder)).load(tok)(ids).logits).abs().max() > 0.01
    assert not hasattr(merged, "peft_config")
    fingerprint = source.fingerprint()
    assert fingerprint["base"] == ModelSource("owner/name").fingerprint()
    if place != "folder":
        (commit,) = hub.repositories["model", "owner/adapters"].branches.values()
        assert fingerprint["weights"] == commit


def test_adapters_that_do_not_fit_are_refused_in_a_line(folder, tmp_path):
    adapted = peft.get_peft_model(
        network(hidden_size=32), peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapters")
    file = tmp_path / "adapters" / "adapter_config.json"
    settings = json.loads(file.read_text())
    for base, message in {
        None: "its adapter_config.json does not name the model of the adapters",
        str(folder): f"its adapters cannot be merged into {folder} \\(",
        str(tmp_path / "none"): "is no folder here, and could not be loaded",
    }.items():
        file.write_text(json.dumps(settings | {"base_model_name_or_path": base}))
        with pytest.raises(InputError, match=message) as refused:
            ModelSource(str(tmp_path / "adapters")).load(tokenizer())
        assert "\n" not in str(refused.value)
    spread = ModelSource(str(tmp_path / "adapters"), device_map="auto")
    file.write_text(json.dumps(settings | {"base_model_name_or_path": str(folder)}))
    with pytest.raises(InputError, match=r"device_map=auto; make it null"):
        spread.load(tokenizer())


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch):
    class Session:
        def head(self, url: str, timeout: float) -> None:
            assert url == NOWHERE

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(of_models, "get_session", Session)
    monkeypatch.setattr(of_models, "_asked", {})
    of_models.ask_its_cache_alone_if_it_is_silent()
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
