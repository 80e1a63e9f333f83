import json
import math

import pytest
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from amid.config.compose import register_resolvers
from amid.config.folders import CONF
from amid.data.builtin import tokenizer
from amid.data.examples import Example
from amid.data.sources import Loaded
from amid.estimates.sizes import HUB_FACTS, SAMPLE, Facts
from amid.experiment.plan import Plan

register_resolvers()
DOLLY = "hf://datasets/MiniLLM/dolly/raw.jsonl"
OPUS = {"_target_": "amid.data.opus100.corpus", "split": "train", "source": "de", "target": "en"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's cache, which is empty, with a function that puts a file of a data set into it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def put(dataset, file, *rows):
        folder = tmp_path / f"datasets--{dataset.replace('/', '--')}"
        commit = "0" * 40
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return put


def configured(*overrides):
    """Models and data of a configuration."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    return {part: OmegaConf.to_container(cfg[part], resolve=part == "data") for part in ("model", "data")}


@pytest.mark.parametrize("file", sorted(CONF.glob("model/*.yaml")), ids=lambda file: file.stem)
def test_every_model_of_a_pair_has_its_facts(file):
    model = configured(f"model={file.stem}", "data=dolly")["model"]
    paths = {model[role]["path"] for role in ("teacher", "student")} - {None, "${model.teacher.path}"}
    assert paths <= HUB_FACTS["models"].keys()


@pytest.mark.parametrize("name", ["dolly", "dolly_small", "dialogsum", "samsum", "gsm8k", "opus100"])
def test_every_data_source_has_its_facts(name, hub):
    cfg = configured(f"data={name}")
    facts, data = Facts(), cfg["data"]
    for source in filter(None, [data["train"], data["valid"], *data["test"].values()]):
        assert facts.rows(source, data.get("fields")) > 0
        lengths = facts.lengths(Plan(cfg, trains=False), source)
        assert 0 < lengths.prompt <= data["max_prompt_length"]
        assert 0 < lengths.response <= data["max_length"] - lengths.prompt
    assert not facts.notes.unknown
    assert ("guessed" in facts.notes.assumed) == (name != "dolly_small")


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        (DOLLY, 12435),
        (f"{DOLLY}[1000:]", 11435),
        (f"{DOLLY}[1000:4200]", 3200),
        (f"{DOLLY}[:1000]", 1000),
        ({**OPUS, "size": None}, 1_000_000),
        ({**OPUS, "size": 500}, 500),
        ({**OPUS, "source": "fr"}, None),
        ("hf://datasets/MiniLLM/uinst/11_/valid.jsonl[:10000]", 10_000),
        ("hf://datasets/MiniLLM/uinst/11_/valid.jsonl", None),
    ],
)
def test_rows_are_those_that_a_source_takes(source, rows, hub):
    fields = {"instruction": "a", "output": "b"} if isinstance(source, dict) else None
    facts = Facts()
    assert facts.rows(source, fields) == (rows or pytest.approx(math.nan, nan_ok=True))
    assert bool(facts.notes.assumed) != bool(facts.notes.unknown) == (rows is None)


def test_a_fact_is_cut_to_the_limits(hub):
    cfg = configured("data=dolly")
    cfg["data"] |= {"max_prompt_length": 60, "max_length": 100}
    lengths = Facts().lengths(Plan(cfg, trains=False), DOLLY)
    assert (lengths.prompt, lengths.response, lengths.row) == (60, 40, 100)


def test_what_the_cache_has_is_read(hub):
    hub("MiniLLM/dolly", "raw.jsonl", *({"instruction": "say it", "output": "x " * n} for n in (1, 2, 3)))
    cfg = configured()
    facts = Facts()
    assert facts.rows(f"{DOLLY}[1:]", None) == 2
    lengths = facts.lengths(Plan(cfg, trains=False), f"{DOLLY}[1:]")
    ours = tokenizer()
    expected = [len(ours("x " * n, add_special_tokens=False)["input_ids"]) + 1 for n in (2, 3)]
    assert lengths.response == sum(expected) / 2
    assert (facts.notes.assumed, facts.notes.unknown) == (None, {})


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("owner/set:main[5:]", f"owner/set:main[5:{5 + SAMPLE}]"),
        ("owner/set[:20]", "owner/set[0:20]"),
        ("rows.jsonl[5:]", "rows.jsonl[5:]"),
    ],
)
def test_the_lengths_of_a_set_of_the_hub_are_those_of_its_first_rows(monkeypatch, source, read):
    asked = []
    found = Loaded([Example("a", "", ("b c",))], 1)
    monkeypatch.setattr("amid.estimates.sizes.loaded", lambda rows, *_: asked.append(rows) or found)
    assert Facts().lengths(Plan(configured(), trains=False), source).response > 0
    assert asked == [read]
