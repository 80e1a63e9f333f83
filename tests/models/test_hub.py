"""The hub: if it does not answer, only its cache is used."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
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
