"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from amid.files import checksum, forget_parts, key_of, read_json, write_json, written_whole


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


def test_a_damaged_json_file_reads_as_none(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    assert read_json(file) == {}
    write_json(file, {"rows": 3})
    assert read_json(file) == {"rows": 3}
    file.write_bytes(file.read_bytes()[:-4])
    assert read_json(file) == {}
    file.write_text("[3]")
    assert read_json(file) == {}


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
