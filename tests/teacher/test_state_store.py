import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amid.losses import Head
from amid.teacher import state_store as states
from amid.teacher.state_codes import decoded, encoded, kl
from amid.teacher.state_store import StateFolder

WIDTH = 4


def true_states(row, count):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(row)).bfloat16()


def folder(path, counts, made_from=None, code="exact"):
    order = sorted(range(len(counts)), key=counts.__getitem__)
    return StateFolder(path, counts, order, made_from or {"teacher": "a"}, code)


def computing(counts, computed):
    def states_of(rows):
        for row in rows:
            computed.append(row)
            yield true_states(row, counts[row])

    return states_of


def written(path, counts, **kwargs):
    computed = []
    folder(path, counts, **kwargs).write(WIDTH, torch.bfloat16, computing(counts, computed))
    return computed


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(states, "SHARD_BYTES", 10 * WIDTH * 2)  # ten positions


COUNTS = [3, 0, 7, 12, 1, 5, 2, 9]


@given(counts=st.lists(st.integers(0, 25), min_size=1, max_size=30), data=st.data())
def test_rows_come_back_as_they_were_in_any_order(tmp_path_factory, counts, data):
    path = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "SHARD_BYTES", 10 * WIDTH * 2)
        written(path, counts)
        read = folder(path, counts).open()
    rows = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1))
    expected = torch.cat([true_states(row, counts[row]) for row in rows])
    assert torch.equal(read[torch.tensor(rows)], expected)
    assert read[torch.tensor(rows)].dtype == torch.bfloat16
    assert (len(read), read.positions) == (len(counts), sum(counts))
    assert all(len(shard["states"]) <= max(10, *counts) for shard in read.shards)
    assert read.kl is None


def test_lossy_states_come_back_within_their_bound_with_what_they_lose(tmp_path, monkeypatch):
    monkeypatch.setattr(states, "SHARD_BYTES", 10 * (WIDTH + 4))
    counts = [7] * 20
    head = Head(torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0)))
    read = []
    for name in ("a", "b"):
        folder(tmp_path / name, counts, code="int8").write(WIDTH, torch.bfloat16, computing(counts, []), head)
        read.append(folder(tmp_path / name, counts, code="int8").open())
    exact = torch.cat([true_states(row, 7) for row in (3, 1)])
    lossy = read[0][torch.tensor([3, 1])]
    assert lossy.dtype == torch.bfloat16
    assert (lossy.float() - exact.float()).abs().max() <= exact.float().abs().max() / 200
    assert not torch.equal(lossy, exact)
    assert (read[0].nbytes, read[0].positions) == (140 * (WIDTH + 4), 140)
    assert len(read[0].shards) == 20
    nats, measured = read[0].kl
    assert measured == 20, "the first position of each shard"
    firsts = [true_states(row, 7)[:1] for row in range(20)]
    expected = sum(kl(head, first, decoded(encoded(first, "int8"), first.dtype)) for first in firsts)
    assert nats == pytest.approx(expected)
    assert states.States.joined(read).kl == (pytest.approx(2 * nats), 40)


@given(cuts=st.sets(st.integers(1, 69), max_size=12))
def test_what_is_lost_does_not_depend_on_how_the_states_come(tmp_path_factory, cuts):
    head = Head(torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0)))
    found = []
    for ends in ([70], [*sorted(cuts), 70]):
        of = folder(tmp_path_factory.mktemp("states"), [70], code="int8")
        starts = [0, *ends[:-1]]
        whole = true_states(0, 70)
        pieces = [whole[start:end] for start, end in zip(starts, ends, strict=True)]
        of.write(WIDTH, torch.bfloat16, lambda rows, pieces=pieces: iter(pieces), head)
        found.append(of.open().kl)
    assert found[0][1] == found[1][1] == 5
    assert found[0][0] == pytest.approx(found[1][0])


def test_joined_parts_number_their_rows_on(tmp_path, small_shards):
    for name in ("a", "b"):
        written(tmp_path / name, COUNTS)
    parts = [folder(tmp_path / name, COUNTS).open() for name in ("a", "b")]
    both = states.States.joined(parts)
    rows = torch.tensor([len(COUNTS) + 2, 2, 3])
    assert torch.equal(both[rows], parts[0][torch.tensor([2, 2, 3])])


def test_a_killed_writer_keeps_its_shards(tmp_path, small_shards):
    def killed(rows):
        if 2 in rows:
            raise KeyboardInterrupt
        yield from computing(COUNTS, [])(rows)

    with pytest.raises(KeyboardInterrupt):
        folder(tmp_path, COUNTS).write(WIDTH, torch.bfloat16, killed)
    (tmp_path / ".states-00009.safetensors.0123.part").write_bytes(b"half")
    assert folder(tmp_path, COUNTS).open() is None
    kept = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    missing = folder(tmp_path, COUNTS).missing(WIDTH, torch.bfloat16)
    assert kept
    assert written(tmp_path, COUNTS) == missing == [2, 7, 3]
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert not list(tmp_path.glob(".*.part"))
    assert folder(tmp_path, COUNTS).open() is not None


def flipped(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize("damage", [flipped, cut, lambda file: file.unlink()])
def test_a_damaged_shard_is_found_and_made_anew_alone(tmp_path, small_shards, damage, capsys):
    written(tmp_path, COUNTS)
    whole = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    damage(tmp_path / "states-00001.safetensors")
    assert folder(tmp_path, COUNTS).open() is None
    assert written(tmp_path, COUNTS) == [5]
    assert "states-00001.safetensors is damaged" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == whole
    assert written(tmp_path, COUNTS) == []


def test_states_of_another_origin_shape_or_manifest_are_not_used(tmp_path, small_shards):
    written(tmp_path, COUNTS)
    assert folder(tmp_path, COUNTS, {"teacher": "b"}).open() is None
    assert folder(tmp_path, [*COUNTS, 3]).open() is None
    assert len(folder(tmp_path, COUNTS).missing(WIDTH, torch.float32)) == len(COUNTS)
    assert len(written(tmp_path, COUNTS, made_from={"teacher": "b"})) == len(COUNTS)
    assert folder(tmp_path, COUNTS).open() is None
    for text in ("", "{", "[]", "{}", '{"shards": [1]}', json.dumps({"shards": [{"file": 3}]})):
        (tmp_path / "manifest.json").write_text(text)
        assert folder(tmp_path, COUNTS).open() is None
    assert len(written(tmp_path, COUNTS)) == len(COUNTS)
