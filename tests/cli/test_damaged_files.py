"""Files of runs that are damaged, or were made by somebody else, under every command that reads them back."""

import json
import os
import shutil

import pytest
import yaml
from command_line import run

from amid.files import read_mapping, write_json, yaml_with_sum

RUN = "seed=1"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished run, `runs/seed=1`, with what it was made from."""
    from conftest import SMALL_RUN

    folder = tmp_path_factory.mktemp("made")
    assert run("train", *SMALL_RUN, *places(folder), "teacher=cached") == 0
    return folder


def places(folder):
    return [
        f"hydra.run.dir={folder / 'runs' / RUN}",
        f"prepared_dir={folder / 'prepared'}",
        f"data.cache_dir={folder / 'cache'}",
    ]


@pytest.fixture
def copy(made, tmp_path):
    """Of the run's folder alone."""
    return shutil.copytree(made / "runs" / RUN, tmp_path / "runs" / RUN)


def rewritten(folder, change):
    """Puts other settings into a run's config.yaml, with the checksum that belongs to them."""
    file = folder / "config.yaml"
    content = read_mapping(file, "")
    change(content["config"])
    file.write_text(yaml_with_sum(yaml.safe_dump(content)))


class TestFromElsewhere:
    """The folder of a run is data: what it names is not run, and nothing elsewhere is written for it."""

    @pytest.mark.parametrize(
        "node", ["data", "generation", "data.metrics.rouge_l", "data.test.open", "trainer"]
    )
    def test_no_code_is_run(self, copy, tmp_path, capsys, monkeypatch, node):
        def change(settings):
            *above, last = node.split(".")
            for name in above:
                settings = settings[name]
            settings[last] = {
                "_target_": "pathlib.Path.touch",
                "_args_": [{"_target_": "pathlib.Path", "_args_": [mark]}],
            }

        mark = str(tmp_path / "ran")
        rewritten(copy, change)
        assert run("evaluate", f"run={copy}", f"output_dir={tmp_path / 'out'}") == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "no code that it names is run; if you trust the folder and that code: trust_run=true" in err
        if node.startswith("data.m"):
            assert run("score", copy) == 1
            assert "--trust-run" in capsys.readouterr().err
        assert run("report", copy.parent) == 0
        assert run("status", copy.parent) == 0
        assert not os.path.exists(mark)

    def test_no_variable_is_resolved(self, copy, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("SECRET", "abc123")
        rewritten(copy, lambda settings: settings["model"]["student"].update(dtype="${oc.env:SECRET}"))
        assert run("evaluate", f"run={copy}", f"output_dir={tmp_path / 'out'}") == 1
        rewritten(copy, lambda settings: settings["data"].update(valid_metric="${oc.env:SECRET}"))
        monkeypatch.setenv("WANDB_MODE", "offline")
        for command in (
            ["evaluate", f"run={copy}"],
            ["score", copy],
            ["report", copy],
            ["dashboard", copy.parent],
        ):
            run(*command, *([f"output_dir={tmp_path / 'out'}"] if command[0] == "evaluate" else []))
        found = capsys.readouterr()
        assert "abc123" not in found.out + found.err
        texts = (file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert not any(b"abc123" in text for text in texts)

    def test_nothing_is_written_where_the_folder_says(self, copy, tmp_path):
        rewritten(copy, lambda settings: settings["data"].update(cache_dir=str(tmp_path / "theirs")))
        out = [f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'ours'}"]
        assert run("evaluate", f"run={copy}", f"output_dir={tmp_path / 'out'}", *out) == 0
        assert list((tmp_path / "ours").glob("tokens-*"))
        assert not (tmp_path / "theirs").exists()

    def test_no_report_is_written_through_a_link(self, copy, tmp_path, capsys):
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        (pictures / "mine.png").touch()
        (copy.parent / "report").symlink_to(pictures)
        assert run("report", copy.parent) == 1
        assert "report is no folder of its own" in capsys.readouterr().err
        assert os.listdir(pictures) == ["mine.png"]

    @pytest.mark.parametrize(
        ("file", "field", "value"),
        [
            ("config.json", "auto_map", {"AutoModelForCausalLM": "evil.Model"}),
            ("config.json", "attn_implementation", "someone/kernels"),
            ("config.json", "text_config", {"attn_implementation": "someone/kernels"}),
            ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Tokenizer", None]}),
            ("adapter_config.json", "base_model_name_or_path", "elsewhere"),
            ("model.safetensors.index.json", "weight_map", {"a": "pytorch_model.bin"}),
            ("model.safetensors.index.json", "weight_map", {"a": "../../other.safetensors"}),
        ],
    )
    def test_the_student_is_weights_alone(self, copy, tmp_path, capsys, file, field, value):
        best = copy / "checkpoints" / "best"
        content = json.loads((best / file).read_text()) if (best / file).exists() else {}
        (best / file).write_text(json.dumps(content | {field: value}))
        unlisted(copy)
        assert run("evaluate", f"run={copy}", f"output_dir={tmp_path / 'out'}") == 1
        err = capsys.readouterr().err
        assert str(best) in err
        assert err.count("\n") == 1

    def test_no_pickle_is_read(self, copy, tmp_path, capsys):
        best = copy / "checkpoints" / "best"
        (best / "model.safetensors").rename(best / "pytorch_model.bin")
        unlisted(copy)
        assert run("evaluate", f"run={copy}", f"output_dir={tmp_path / 'out'}") == 1
        assert "has no weights in safetensors" in capsys.readouterr().err

    def test_a_plan_names_folders_and_commands_of_amid(self, copy, capsys):
        sweep = copy.parent
        for plan in (
            {"command": "amid sweep a", "runs": ["../../etc"]},
            {"command": "rm -rf ~", "runs": ["a"]},
        ):
            write_json(sweep / "sweep.json", plan)
            assert run("status", sweep) == 1
            assert "sweep.json is damaged (" in capsys.readouterr().err
        write_json(sweep / "sweep.json", {"command": "amid sweep a; rm -rf ~", "runs": ["a"]})
        assert run("status", sweep) == 0
        assert "To go on: amid sweep 'a;' rm -rf '~'" in capsys.readouterr().out


def unlisted(folder):
    """Takes the checksums of the run's files out of its record, as where somebody else wrote it."""
    write_json(folder / "result.json", {**read_mapping(folder / "result.json", ""), "files": {}})
