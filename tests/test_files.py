"""Files that appear whole or not at all, and are checked when they are read back."""

import json
import os
from pathlib import Path

import pytest

from amid.errors import Damaged
from amid.files import (
    Record,
    check_own,
    check_sums,
    checksum,
    forget_parts,
    key_of,
    read_made,
    read_mapping,
    read_record,
    sums_of,
    write_json,
    written_whole,
    yaml_with_sum,
)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_appears_at_the_end(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with written_whole(target, durable) as part:
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(target) as part:
        part.with_name("gone").rename(part)
    with pytest.raises(UnicodeEncodeError), written_whole(target) as part:
        part.write_text("half \ud800", encoding="utf-8")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    with written_whole(target) as first, written_whole(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # whose block ended last


def test_what_a_killed_process_left_is_forgotten(tmp_path: Path) -> None:
    target = tmp_path / "states.safetensors"
    with written_whole(target) as part:
        part.write_text("all")
        part.with_name(part.name.replace("states", "left")).write_text("half")
    forget_parts(tmp_path)
    assert os.listdir(tmp_path) == ["states.safetensors"]


class Plan(Record):
    command: str
    runs: list[int]
    share: float = 1.0


class TestReadBack:
    def test_what_was_written(self, tmp_path):
        file = tmp_path / "plan.json"
        assert read_mapping(file, "") is None
        assert read_record(file, Plan, "") is None
        write_json(file, {"command": "α", "runs": [1, 2], "later": float("nan")})
        assert read_record(file, Plan, "") == Plan(command="α", runs=[1, 2])
        file.write_text(json.dumps(json.loads(file.read_text()), indent=4))
        assert read_record(file, Plan, "").runs == [1, 2], "another layout of the same content"
        file.write_text('{"command": "b", "runs": [], "share": 1}')
        assert read_record(file, Plan, "").share == 1.0, "written without a checksum, by hand or before"

    def test_yaml_holds_plain_values_alone(self, tmp_path):
        file = tmp_path / "plan.yaml"
        file.write_text(yaml_with_sum("command: a * b\nruns: [1]\n"))
        assert read_mapping(file, "") == {"command": "a * b", "runs": [1]}
        for text in (
            "a: !!python/object/apply:os.getcwd []",
            "a: &x [1]\nb: *x",
            "[1]",
            "",
            "a: [",
            "a: 1\n- b",
            "a: 2020-01-01",
            "a: !!set {b, c}",
            "a: !!binary aGVsbG8=",
            "a: " + "[" * 200 + "]" * 200,
        ):
            file.write_text(text)
            with pytest.raises(Damaged, match=r"plan.yaml is damaged .*; delete it"):
                read_mapping(file, "delete it")

    @pytest.mark.parametrize("value", [r'"\ud800"', r'{"\uDFFF": 1}', "[" * 200 + "]" * 200, "[" * 10**5])
    def test_what_nothing_can_do_with_is_damaged(self, tmp_path, value):
        file = tmp_path / "plan.json"
        file.write_text(f'{{"a": {value}}}')
        with pytest.raises(Damaged, match=r"plan.json is damaged .*; delete it"):
            read_mapping(file, "delete it")
        file.write_text(r'{"a": "\ud83d\ude00"}')
        assert read_mapping(file, "") == {"a": "\U0001f600"}

    def test_pipes_are_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a")
        with pytest.raises(Damaged, match="a is no regular file; remove it"):
            check_sums(tmp_path, {"a": "0"}, "remove it")

    def test_links_are_named_and_the_folder_may_be_one(self, tmp_path):
        (tmp_path / "own" / "checkpoints").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "own")
        check_own(tmp_path / "link", ("checkpoints", "generations"), "remove it")
        (tmp_path / "own" / "checkpoints" / "best").symlink_to(tmp_path / "nowhere")
        with pytest.raises(Damaged, match=r"checkpoints/best is a link, .*; remove it"):
            check_own(tmp_path / "link", ("checkpoints", "generations"), "remove it")

    @pytest.mark.parametrize("suffix", ["json", "yaml"])
    def test_no_byte_changes_unseen(self, tmp_path, suffix):
        file = tmp_path / f"plan.{suffix}"
        if suffix == "json":
            write_json(file, {"command": "amid", "runs": [10, 20], "share": 0.25})
        else:
            file.write_text(yaml_with_sum("command: amid\nruns:\n- 10\n- 20\nshare: 0.25\n"))
        whole = file.read_bytes()
        content = read_mapping(file, "")
        for place in range(len(whole)):
            for bit in (0, 7):
                flipped = bytearray(whole)
                flipped[place] ^= 1 << bit
                for damaged in (bytes(flipped), whole[:place]):
                    file.write_bytes(damaged)
                    try:
                        found = read_mapping(file, "")
                    except Damaged:
                        continue
                    assert {name: found.get(name) for name in content} == content

    @pytest.mark.parametrize(
        "content",
        [
            {"command": 1, "runs": []},
            {"command": "a"},
            {"command": "a", "runs": ["1"]},
            {"command": "a", "runs": [True]},
            {"command": "a", "runs": {}},
            {"command": "a", "runs": [], "share": "nan"},
            {"checksum": None, "command": "a", "runs": []},
            [],
            None,
        ],
    )
    def test_other_types(self, tmp_path, content):
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(content))
        with pytest.raises(Damaged, match=f"^{file} is damaged .*; start again$"):
            read_record(file, Plan, "start again")

    def test_what_is_no_file_or_endless(self, tmp_path):
        file = tmp_path / "plan.json"
        os.mkfifo(file)
        with pytest.raises(Damaged, match="is no regular file"):
            read_mapping(file, "delete it")
        file.unlink()
        file.write_text("[" * 100_000)
        with pytest.raises(Damaged, match="is damaged"):
            read_mapping(file, "delete it")
        file.write_text('{"a": ' + "9" * 5_000 + "}")
        with pytest.raises(Damaged, match="is damaged"):
            read_mapping(file, "delete it")

    def test_what_is_made_anew(self, tmp_path, capsys):
        file = tmp_path / "plan.json"
        assert read_made(file, Plan) is None
        assert capsys.readouterr().out == ""
        file.write_text("{")
        assert read_made(file, Plan) is None
        assert f"{file} is damaged (" in (out := capsys.readouterr().out)
        assert out.endswith("): made again\n")


def test_files_are_those_of_their_checksums(tmp_path):
    (tmp_path / "a").mkdir()
    one, other = tmp_path / "a" / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    sums = sums_of(tmp_path, [other, one])
    assert list(sums) == ["a/one", "other"]
    check_sums(tmp_path, sums, "")
    one.write_text("2")
    with pytest.raises(Damaged, match=f"^{one} is damaged .*; train again$"):
        check_sums(tmp_path, sums, "train again")
    one.unlink()
    with pytest.raises(Damaged, match=f"^{one} is missing; train again$"):
        check_sums(tmp_path, sums, "train again")


def test_a_checksum_follows_the_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert checksum(one) is None
    one.write_text("same")
    other.write_text("same")
    before = checksum(one)
    assert before == checksum(other)
    one.write_text("longer")
    assert checksum(one) not in (None, before)


def test_a_key_is_that_of_the_content(tmp_path: Path) -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
