"""Files of runs that are damaged, or were made by somebody else, under every command that reads them back."""

import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_line import run

from amid import results
from amid.cli.evaluate import _saved
from amid.config.run_settings import stored_student
from amid.errors import InputError
from amid.experiment import fine_tuning as preparation
from amid.experiment.record import finished_run
from amid.files import read_mapping, write_json, yaml_with_sum
from amid.reporting import folders, significance
from amid.scoring.systems import read_systems
from amid.tracking.command_records import commands_of, write_plan
from amid.tracking.status import read_status

RUN = "seed=1"


@pytest.fixture(scope="module")
def made(tmp_path_factory, shortened):
    """The folder of a finished run, `runs/seed=1`, with what it was made from."""
    folder = tmp_path_factory.mktemp("made")
    assert run("train", *shortened, *places(folder), "teacher=cached") == 0
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

    @pytest.mark.parametrize("node", ["generation", "data.metrics.rouge_l"])
    def test_no_code_is_run(self, copy, tmp_path, capsys, node):
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
        places = [f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'ours'}"]
        assert run("evaluate", f"run={copy}", *places) == 0
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
            ("config.json", "_attn_implementation_internal", "someone/kernels"),
            ("config.json", "transformers_weights", "other.safetensors"),
            ("config.json", "num_hidden_layers", 10**9),
            ("config.json", "hidden_size", "abc"),
            ("config.json", "hidden_act", ["a"]),
            ("config.json", "dtype", "os.system"),
            ("tokenizer_config.json", "added_tokens_decoder", {"abc": 5}),
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

    @pytest.mark.parametrize(
        ("node", "value", "told"),
        [
            ("generation.samples", "abc", "generation.samples=abc must be"),
            ("generation.top_k", [[]], "generation.top_k="),
            ("data.test_prompts", 1.5, "data.test_prompts=1.5 must be"),
            ("data.test.open.size", 1.5, "data.test.open.size=1.5 must be"),
            ("data.batch_size", [], "data.batch_size=[] must be"),
            ("data.special_tokens", "\x1b[31mred", "data.special_tokens=\ufffd[31mred must be"),
        ],
    )
    def test_settings_are_checked_as_those_of_the_command_line(
        self, copy, tmp_path, capsys, node, value, told
    ):
        def change(settings):
            *above, last = node.split(".")
            for name in above:
                settings = settings[name]
            settings[last] = value

        rewritten(copy, change)
        assert run("evaluate", f"run={copy}", f"output_dir={tmp_path / 'out'}") == 1
        err = capsys.readouterr().err
        assert f"{copy / 'config.yaml'}: {told}" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        "name",
        [
            ".hydra",
            ".lock",
            "generations",
            "checkpoints",
            "checkpoints/best",
            ".hydra/config.yaml",
            "metrics.csv",
        ],
    )
    def test_nothing_is_written_through_a_link(self, copy, shortened, tmp_path, capsys, name):
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / ".x.part").write_text("mine")
        place = copy / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        place.symlink_to(theirs / ".x.part" if place.suffix or name == ".lock" else theirs)
        (copy / "result.json").unlink()
        assert run("train", *shortened, f"hydra.run.dir={copy}") == 1
        err = capsys.readouterr().err
        assert f"{place} is a link, and writing would change what it leads to; remove the link" in err
        assert err.count("\n") == 1
        assert [(file.name, file.read_text()) for file in theirs.iterdir()] == [(".x.part", "mine")]

    def test_no_list_of_a_multirun_is_written_through_a_link(self, copy, shortened, tmp_path, capsys):
        (tmp_path / "mine").write_text("mine")
        (copy.parent / "multirun.yaml").symlink_to(tmp_path / "mine")
        assert run("train", "-m", *shortened, "seed=1", f"output_dir={copy.parent}") == 1
        assert "multirun.yaml is a link" in capsys.readouterr().err
        assert (tmp_path / "mine").read_text() == "mine"

    @pytest.mark.parametrize("name", ["open-1.jsonl", "per_prompt.json", ".made_from.json"])
    def test_pipes_are_not_waited_for(self, copy, capsys, name):
        for file in (copy / "generations" / ".made_from.json", copy / "generations" / name):
            file.unlink(missing_ok=True)
        os.mkfifo(copy / "generations" / name)
        assert run("report", copy.parent) == 1
        assert f"{name} is no regular file; " in capsys.readouterr().err

    @pytest.mark.parametrize(
        "line",
        [
            "[" * 100_000,
            '{"references": ["a"], "answers": ["\\ud800"]}',
            f'{{"references": ["a"], "answers": [{{"text": "a", "tokens": {10**400}}}]}}',
            f'{{"references": ["a"], "answers": [{{"text": "a", "log_probs": [{10**400}]}}]}}',
        ],
        ids=["deep", "half a character", "tokens", "log_probs"],
    )
    def test_answers_that_nothing_can_do_with(self, copy, capsys, line):
        (copy / "generations" / ".made_from.json").unlink()
        (copy / "generations" / "open-1.jsonl").write_text(f"{line}\n")
        assert run("score", copy) == 1
        err = capsys.readouterr().err
        assert "open-1.jsonl, line 1, is no prompt with answers: " in err
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


def flipped(file, share):
    content = bytearray(file.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped first": lambda file: flipped(file, 0),
    "flipped": lambda file: flipped(file, 0.4),
    "flipped last": lambda file: flipped(file, 0.97),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
}


def status(folder):
    runs = read_status(folder.parent)
    return runs, commands_of(folder.parent, [run.name for run in runs])


def report(folder):
    records = results.load_folders(folder.parent)
    for place, result in records.items():
        results.check_curves(place, result)
    read = (folders.answers(folder, 3), folders.curves(folder), folders.configuration(folder))
    return records, folders.sizes(folder), *read, significance._read(folder)


def score(folder):
    return [(s.name, s.dataset, s.by_seed, list(s.metrics)) for s in read_systems([folder])]


def evaluate(folder):
    return stored_student(folder, results.load(folder)).name, _saved(folder)


def train(folder):
    return finished_run(folder, SimpleNamespace(has_key=KEY[0].__eq__, hashed={}, compared=False))


KEY = []
"""The hash of the run's configuration."""

READERS = [status, report, score, evaluate, train]


def files_of(folder):
    return sorted(
        file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.stat().st_size
    )


class TestDamagedRun:
    """Whatever file of a run is damaged, and however: what is read back is refused by name, or the same."""

    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
    def test_every_file(self, copy, read, damage):
        KEY[:] = [results.load(copy).config_hash]
        write_plan(copy.parent, [copy.name, "b"], "amid sweep mine")
        whole = read(copy)
        seen = set()
        for name in [*files_of(copy), Path("..", "sweep.json")]:
            file = copy / name
            kept = file.read_bytes()
            DAMAGES[damage](file)
            try:
                found = read(copy)
            except InputError as error:
                message = str(error)
                assert str(file.resolve()) in message or str(file) in message
                assert "; " in message
                assert "\n" not in message
                seen.add(str(name))
            else:
                assert repr(found) == repr(whole) or f"{name.name} is damaged" in repr(found), name
            file.write_bytes(kept)
            os.utime(file)
        assert seen == {name for name in seen if any(name.startswith(of) for of in REFUSED[read])}
        assert damage not in ("flipped", "cut", "emptied") or seen >= ALWAYS_REFUSED[read]


REFUSED = {
    status: ["../sweep.json", ".hydra/hydra.yaml"],
    report: ["result.json", "config.yaml", "metrics", "generations/"],
    score: ["config.yaml", "generations/"],
    evaluate: ["result.json", "config.yaml", "checkpoints/best/"],
    train: ["result.json", "config.yaml"],
}
ALWAYS_REFUSED = {
    status: {"../sweep.json"},
    report: {
        "result.json",
        "config.yaml",
        "metrics.csv",
        "generations/open-1.jsonl",
        "generations/per_prompt.json",
    },
    score: {"config.yaml", "generations/open-1.jsonl", "generations/closed-2.jsonl"},
    evaluate: {
        "result.json",
        "config.yaml",
        "checkpoints/best/model.safetensors",
        "checkpoints/best/config.json",
    },
    train: {"result.json", "config.yaml"},
}


def test_answers_of_an_evaluation_that_was_interrupted(copy, tmp_path, capsys):
    again = ["evaluate", f"run={copy}", f"hydra.run.dir={tmp_path / 'scores'}"]
    assert run(*again) == 0
    folder = tmp_path / "scores" / "generations"
    whole = results.load(folder.parent).scores
    (folder.parent / "result.json").unlink()
    DAMAGES["flipped"](folder / "open-1.jsonl")
    capsys.readouterr()
    assert run(*again) == 0
    out = capsys.readouterr().out
    assert f"{folder / 'open-1.jsonl'} has changed since it was written: its set is answered again\n" in out
    assert "Answered before, and kept: closed\n" in out
    assert results.load(folder.parent).scores == whole
    (folder.parent / "result.json").unlink()
    content = read_mapping(folder / ".made_from.json", "")
    (folder / ".made_from.json").write_text(json.dumps({"made_from": content["made_from"]}))
    assert run(*again) == 0
    out = capsys.readouterr().out
    assert ".made_from.json is damaged (seconds: Field required): made again\n" in out
    assert "Answered before" not in out
    assert results.load(folder.parent).scores == whole


class TestDamagedModels:
    """A damaged fine-tuned model is made again, and says so."""

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_every_file(self, made, tmp_path, capsys, damage):
        (folder, _) = (made / "prepared").glob("sft-*/")
        for name in (
            "result.json",
            *(file for file in files_of(folder) if str(file).startswith("checkpoints/")),
        ):
            again = shutil.copytree(folder, tmp_path / "again", dirs_exist_ok=True)
            preparation.forget_damaged(again)
            assert capsys.readouterr().out == ""
            DAMAGES[damage](again / name)
            preparation.forget_damaged(again)
            if list(again.iterdir()):
                assert results.load(again) == results.load(folder)
            else:
                assert f"{again / name} is damaged" in (out := capsys.readouterr().out)
                assert out.endswith("): the model is made again\n")
            assert name == "result.json" or not list(again.iterdir())


COMMANDS = ["status", "report", "score", "evaluate", "train", "sweep"]


@pytest.mark.slow
class TestCommands:
    """Every file of a run, its caches and fine-tuned models, under every command: the same, or refused.

    The damage of a file is another one under another command.
    """

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_file(self, made, shortened, tmp_path, capsys, command):
        all_of_it = tmp_path / "all"
        damages = itertools.islice(
            itertools.cycle(["flipped", "cut", "emptied"]), COMMANDS.index(command), None
        )
        for name, damage in zip(files_of(made), damages, strict=False):
            shutil.rmtree(all_of_it, ignore_errors=True)
            shutil.copytree(made, all_of_it)
            folder = all_of_it / "runs" / RUN
            write_plan(folder.parent, [RUN], "amid sweep mine")
            arguments = {
                "status": ["status", folder.parent],
                "report": ["report", folder.parent],
                "score": ["score", folder],
                "evaluate": ["evaluate", f"run={folder}", f"hydra.run.dir={all_of_it / 'scores'}"],
                "train": ["train", *shortened, *places(all_of_it), "teacher=cached"],
                "sweep": ["train", "-m", *shortened, *places(all_of_it)[1:], "teacher=cached", "seed=1"],
            }[command]
            if command == "sweep":  # new runs, from what is shared
                arguments.append(f"output_dir={all_of_it / 'more'}")
            DAMAGES[damage](all_of_it / name)
            status = run(*arguments)
            out, err = capsys.readouterr()
            if status:
                assert (err.count("\n"), "error.log" in err, name.name in err) == (1, False, True), (
                    name,
                    err,
                )
            elif command in ("train", "sweep", "evaluate"):
                written = {"evaluate": all_of_it / "scores", "train": folder}.get(command)
                written = written or next((all_of_it / "more").glob("*/result.json")).parent
                assert results.load(written).scores == results.load(made / "runs" / RUN).scores, (name, out)
