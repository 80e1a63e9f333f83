"""`amid push`, against a stand-in of the hub."""

import os
import subprocess
import sys

import pytest
import torch
from command_line import run
from hub_server import Token
from huggingface_hub import constants, metadata_load
from published import STUDENT

from amid import results
from amid.data.builtin import tokenizer
from amid.models.location import Location
from amid.models.source import ModelSource, load_tokenizer
from amid.publishing.finished import FinishedRun
from amid.publishing.upload import upload_of


@pytest.fixture
def mine(hub, monkeypatch):
    """The stand-in, with a token of `me` that may write."""
    hub.tokens["hf_mine"] = Token("me")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    return hub


def refused(capsys, *arguments):
    capsys.readouterr()
    assert run("push", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("amid: ")


def test_a_student_arrives_whole_and_private_in_one_commit(mine, changed, capsys):
    folder = changed().directory
    assert run("push", folder, "me/student") == 0
    assert capsys.readouterr().out == f"Student: {mine.url}/me/student (private)\n"
    repository = mine.repositories["model", "me/student"]
    assert repository.private
    assert repository.messages == ["initial commit", "Upload a student distilled by amid"]
    best = {file.name: file.read_bytes() for file in (folder / "checkpoints" / "best").iterdir()}
    there = repository.files
    assert {name: there[name] for name in best} == best
    assert {*there} - {*best} == {".gitattributes", "README.md", "report.html"}
    assert repository.large >= {"model.safetensors"}
    assert b"</html>" in there["report.html"]
    assert str(folder).encode() not in there["report.html"]
    assert b"/prepared/" not in there["report.html"]
    assert b"[report.html](report.html)" in there["README.md"]
    of_hub = ModelSource("me/student").load(load_tokenizer("me/student"))
    own = ModelSource(str(folder / "checkpoints" / "best")).load(tokenizer())
    assert torch.equal(of_hub.lm_head.weight, own.lm_head.weight)


@pytest.mark.slow
def test_the_address_of_the_hub_comes_from_the_environment(hub, finished, tmp_path):
    hub.tokens["hf_mine"] = Token("me")
    command = [sys.executable, "-m", "amid", "push", str(finished), "me/student", "--public"]
    env = os.environ | hub.environment(tmp_path / "home", token="hf_mine")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == f"Student: {hub.url}/me/student (public)\n"
    assert not hub.repositories["model", "me/student"].private
    assert "hf_mine" not in done.stderr


def test_a_dry_run_prints_the_files_and_asks_nothing(hub, finished, capsys):
    assert run("push", finished, "me/student", "--dry-run") == 0
    out = capsys.readouterr().out
    for file in (finished / "checkpoints" / "best").iterdir():
        assert f"{file.name} " in out
        assert f"{file.stat().st_size:,}" in out
    assert "README.md" in out
    assert "report.html" in out
    assert "A new repository, me/student: private. Nothing was uploaded." in out
    assert not hub.requests
    assert run("push", finished, "me/student", "--dry-run", "--public") == 0
    assert "A new repository, me/student: public." in capsys.readouterr().out


def test_the_card_of_the_run_goes_along(mine, changed, tmp_path, capsys):
    folder = changed().directory
    assert run("card", folder, "me/student") == 0
    text = (folder / "README.md").read_text().replace("## Use", "My own words.\n\n## Use")
    (folder / "README.md").write_text(text)
    assert "README.md; change it there, or delete it" in refused(
        capsys, folder, "me/student", "--license=mit"
    )
    assert run("push", folder, "me/student") == 0
    there = mine.repositories["model", "me/student"].files["README.md"]
    assert there.decode() == text
    for broken in ("tags: [", "tags: 3", "- tags"):
        (folder / "README.md").write_text(f"---\n{broken}\n---\nNothing.")
        assert "README.md: its metadata cannot be read (" in refused(capsys, folder, "me/other")
    (folder / "README.md").write_text("---\nbase_model_relation: cousin\n---\nNothing.")
    wrong = '"base_model_relation" must be one of adapter, finetune, merge, quantized'
    line = refused(capsys, folder, "me/other")
    assert line == f"README.md: Invalid metadata in README.md. - {wrong}; correct the lines at its top"
    assert ("model", "me/other") not in mine.repositories


@pytest.mark.parametrize("named", [["me/first"], []])
def test_a_card_of_another_name_is_not_uploaded(named, mine, changed, capsys):
    """An unedited one is written anew; an edited one is refused, and stays as it is."""
    folder = changed().directory
    assert run("card", folder, *named, "--license=mit") == 0
    card, name = folder / "README.md", named[0] if named else "OWNER/NAME"
    text = card.read_text()
    assert run("push", folder, "me/second") == 0
    there = mine.repositories["model", "me/second"].files["README.md"].decode()
    assert 'pipeline("text-generation", model="me/second")' in there
    assert "\n# second\n" in there
    assert "\nlicense: mit\n" in there
    assert name not in there
    assert card.read_text() == text
    card.write_text(edited := text.replace("## Use", "My own words.\n\n## Use"))
    for option in ([], ["--dry-run"]):
        line = refused(capsys, folder, "me/third", *option)
        assert line == (
            f"{card} names {name} in place of me/third, and may hold your own words; write me/third there, "
            f"or delete the file for a new card{', or push to me/first' if named else ''}"
        )
    assert card.read_text() == edited
    assert ("model", "me/third") not in mine.repositories
    card.write_text(corrected := edited.replace(name, "me/third"))
    assert run("push", folder, "me/third") == 0
    assert mine.repositories["model", "me/third"].files["README.md"].decode() == corrected


def test_no_path_of_the_machine_stands_in_what_is_uploaded(changed):
    """Neither as it is nor as it stands in the name of the run, in full or cut."""
    place = "/home/me/zqxj/a place/of_mine.jsonl"
    data = {"train": f"{place}[:9]", "test": {"a": "/home/me/zqxj/test.jsonl"}}
    first = changed(settings={"data": data}).directory
    cut = "seed=2,data.train=_home_me_zqxj_a_pla-0198779f"
    whole = "data.test.a=_home_me_zqxj_test.jsonl,data.train=_home_me_zqxj_a_place_of_mine.jsonl_9_-0198779f"
    for name, public in (
        (cut, "seed=2,data.train=of_mine.jsonl-0198779f"),
        (whole, "data.test.a=test.jsonl,data.train=of_mine.jsonl_9_-0198779f"),
    ):
        folder = first.rename(first.parent / name)
        upload = upload_of(FinishedRun.read(folder), "me/student")
        assert public.encode() in upload.files["report.html"]
        for file, content in upload.files.items():
            text = content if isinstance(content, bytes) else content.read_bytes()
            for private in (b"zqxj", b"home_me", str(first.parent).encode()):
                assert private not in text, file
        first = folder


@pytest.mark.parametrize(
    ("token", "role", "message"),
    [
        (None, "", "there is no token for the hub; log in with `hf auth login`, with a token that may write"),
        ("hf_unknown", "", "the hub does not know the token; log in again with `hf auth login`, or correct"),
        ("hf_reader", "read", "the token may only read; make one that may write, at"),
        ("hf_writer", "write", "you/student: the hub refused it (403: You don't have the rights to create"),
    ],
)
def test_a_token_that_may_not_write_is_a_line(token, role, message, hub, finished, capsys, monkeypatch):
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    if role:
        hub.tokens[token] = Token("me", role)
    line = refused(capsys, finished, "you/student")
    assert line.startswith(message)
    assert "hf_" not in line
    assert not hub.repositories


def test_a_name_that_is_taken_is_a_line_and_an_update_adds_to_it(mine, finished, capsys):
    first = {"model-00001-of-00002.safetensors": b"old", "model.safetensors": b"old", "notes.txt": b"mine"}
    first |= {"adapter_config.json": b"{}", "chat_template.jinja": b"{{ messages }}"}
    mine.add("me/student", first, private=True)
    line = refused(capsys, finished, "me/student")
    assert line == (
        f"me/student is taken: there is such a repository at {mine.url}/me/student; choose another name, or "
        "add a commit to it with --update"
    )
    assert mine.repositories["model", "me/student"].files == first
    assert "--public with --update" in refused(capsys, finished, "me/student", "--update", "--public")
    assert run("push", finished, "me/student", "--update") == 0
    there = mine.repositories["model", "me/student"].files
    assert there["model.safetensors"] == (finished / "checkpoints/best/model.safetensors").read_bytes()
    assert there["notes.txt"] == b"mine"
    assert not there.keys() & {*first} - {"model.safetensors", "notes.txt"}
    assert "check OWNER/NAME, or leave out --update to make it" in refused(
        capsys, finished, "me/other", "--update"
    )


@pytest.mark.parametrize("part", ["/commit/main", "/lfs/", "/preupload/"])
def test_an_upload_that_fails_leaves_nothing(part, mine, finished, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    mine.failing = {part: 507}
    line = refused(capsys, finished, "me/student")
    assert line.startswith("me/student: the ")
    assert "507" in line
    assert not mine.repositories
    mine.failing = {part: 507, "DELETE /api/repos/delete": 507}
    assert "it is empty now; run the command again with --update" in refused(capsys, finished, "me/student")
    mine.failing = {}
    assert run("push", finished, "me/student", "--update") == 0
    assert "model.safetensors" in mine.repositories["model", "me/student"].files


def test_without_a_network_nothing_is_uploaded(mine, finished, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        line = refused(capsys, finished, "me/student")
    assert line.startswith("the hub at http://127.0.0.1:9 does not answer (")
    assert line.endswith("nothing was uploaded. Check the network and run the command again")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE keeps from asking the hub" in refused(capsys, finished, "me/student")
    assert not mine.repositories


def test_a_damaged_student_is_not_uploaded(mine, changed, capsys):
    folder = changed().directory
    with (folder / "checkpoints" / "best" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert "its bytes are not those that were written" in refused(capsys, folder, "me/student")
    assert not mine.repositories


@pytest.fixture
def with_adapters(changed, tmp_path, mine):
    """A run with LoRA on a model of the hub."""
    import peft
    from small_models import network

    network().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    mine.add(STUDENT, tmp_path / "model")
    adapted = peft.get_peft_model(
        network(),
        peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False),
    )
    adapted.peft_config["default"].base_model_name_or_path = STUDENT

    def make(**student):
        path = {"path": STUDENT, "architecture": None, "sft": None, "lora": {"r": 2, "alpha": 64}}
        found = changed({"student": path | student})
        adapted.save_pretrained(found.directory / "checkpoints" / "adapter")
        (found.directory / "checkpoints" / "adapter" / "README.md").unlink()
        sums = results.sums_of_run(found.directory)
        results.save(results.RunResult(**vars(found.result) | {"files": sums}), found.directory)
        return found.directory

    return make


def test_adapters_go_alone(with_adapters, mine, capsys):
    folder = with_adapters()
    assert run("push", folder, "me/adapters", "--adapter-only") == 0
    repository = mine.repositories["model", "me/adapters"]
    assert {*repository.files} == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "report.html",
    }
    (folder / "README.md").write_bytes(repository.files["README.md"])
    data = metadata_load(folder / "README.md")
    assert (data["base_model"], data["base_model_relation"]) == (STUDENT, "adapter")
    assert data["library_name"] == "peft"
    assert Location.of("me/adapters").base() == STUDENT
    merged = ModelSource("me/adapters").load(load_tokenizer("me/adapters"))
    start = ModelSource(STUDENT).load(tokenizer())
    ids = torch.tensor([[1, 2, 3]])
    assert (merged(ids).logits - start(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"sft": {"trainer": {}}}, "was fine-tuned (model.student.sft) before the adapters were added"),
        ({"layers": [0]}, "was cut to some layers (model.student.layers) before the adapters were added"),
        ({"path": "/home/me/model"}, "belong to is not on the hub, so nobody else has it; leave the option"),
    ],
)
def test_adapters_of_a_model_that_nobody_else_has_are_refused(student, message, with_adapters, mine, capsys):
    line = refused(capsys, with_adapters(**student), "me/adapters", "--adapter-only")
    assert message in line
    assert ("model", "me/adapters") not in mine.repositories


def test_a_run_without_adapters_has_none_to_upload(finished, capsys):
    line = refused(capsys, finished, "me/adapters", "--adapter-only", "--dry-run")
    assert line.endswith("was trained without LoRA; leave the option out to upload the student")
