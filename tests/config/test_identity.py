"""What decides the identity of a run: the content of what its data sources name."""

import json

from amid.config.identity import config_hash, contents_of


def of(train):
    return {"data": {"train": train, "valid": None, "test": {}}, "seed": 0}


def test_the_content_of_files_patterns_folders_and_lists_is_hashed(tmp_path):
    first, second = tmp_path / "1.jsonl", tmp_path / "in" / "2.jsonl"
    second.parent.mkdir()
    for file in (first, second):
        file.write_text("a")
    sources = {
        f"{first}[:3]": {str(first)},
        f"{tmp_path}/*/*.jsonl": {str(second)},
        str(tmp_path): {str(tmp_path)},
        f"{tmp_path}:main:train": {str(tmp_path)},
        (str(first), f"{tmp_path}/in/*"): {str(first), str(second)},
        f"{tmp_path}/*.csv": set(),
        f"{tmp_path}/3.csv": set(),
    }
    before = {source: config_hash(of(source)) for source in sources}
    for source, names in sources.items():
        assert set(contents_of(of(source))) == names
    second.write_text("other")
    changed = {source for source in sources if config_hash(of(source)) != before[source]}
    assert changed == {source for source, names in sources.items() if names & {str(second), str(tmp_path)}}


def test_what_is_on_the_hub_has_its_commit(hub):
    commit = hub.add("owner/set", {"train.csv": "a"}, "dataset")
    assert contents_of(of("owner/set:main[:3]")) == {"owner/set": commit}
    assert contents_of(of("owner/none")) == {}
    before = config_hash(of("owner/set"))
    assert before == config_hash(of("owner/set"))
    later = hub.add("owner/set", {"train.csv": "b"}, "dataset")
    assert config_hash(of("owner/set")) != before
    assert contents_of(of(f"owner/set@{commit}")) == {f"owner/set@{commit}": commit}
    assert contents_of(of(["owner/set"])) == {"owner/set": later}
    of_file = [f"hf://datasets/owner/set{revision}/train.csv[:2]" for revision in ("", f"@{commit}")]
    assert contents_of(of(of_file[0])) == {"owner/set": later}
    assert contents_of(of(of_file)) == {"owner/set": later, f"owner/set@{commit}": commit}


def test_the_local_model_of_adapters_is_hashed_too(tmp_path):
    base, adapters, elsewhere = (tmp_path / name for name in ("base", "adapters", "elsewhere"))
    for folder in (base, adapters, elsewhere):
        folder.mkdir()
    (base / "model.safetensors").write_text("1")
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (elsewhere / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/none"}))

    def found(folder):
        return {"model": {"student": {"path": str(folder)}}}

    assert set(contents_of(found(adapters))) == {str(adapters), str(base)}
    assert set(contents_of(found(elsewhere))) == {str(elsewhere)}
    before = config_hash(found(adapters))
    (base / "model.safetensors").write_text("2")
    assert config_hash(found(adapters)) != before
