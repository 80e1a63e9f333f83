"""Data sources by every form that they have on disk and on the hub."""

import bz2
import gzip
import json
import lzma
import shlex
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import constants
from pyarrow import parquet

from amid.config.data_files import parts_of
from amid.config.overrides import parsed_overrides
from amid.data.sources import load_documents, load_examples, loaded
from amid.errors import InputError
from amid.estimates.sizes import Facts


def rows(*names):
    return [{"instruction": name, "output": f"{name}!"} for name in names]


def read(source, **given):
    return "".join(example.instruction for example in load_examples(source, **given))


def json_lines(*names):
    return "".join(json.dumps(row) + "\n" for row in rows(*names))


def columns(path: Path, *names):
    """Writes rows as Parquet, or as an Arrow file or stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows(*names))
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        new = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table)
    return path


def packed_by_zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": packed_by_zstd}


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files_are_read_and_a_damaged_one_is_named(tmp_path, suffix):
    file = tmp_path / f"a.jsonl{suffix}"
    whole = PACK[suffix](json_lines("a", "b").encode())
    file.write_bytes(whole)
    assert read(str(file)) == "ab"
    (tmp_path / f"a.csv{suffix}").write_bytes(PACK[suffix](b"instruction,output\na,b\n"))
    assert read(str(tmp_path / f"a.csv{suffix}")) == "a"
    for damaged in (whole[:-9], b"{}" * 40):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"a.jsonl{suffix} is not a whole (gzip|bzip2|xz|zstd) file"):
            load_examples(str(file))
    renamed = tmp_path / "a.jsonl"
    renamed.write_bytes(whole)
    with pytest.raises(InputError, match=rf"is packed with .*let its name end in {suffix}"):
        load_examples(str(renamed))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_files_of_columns_are_read_and_a_damaged_one_is_named(tmp_path, name):
    file = columns(tmp_path / name, "a", "b", "c")
    assert read(f"{file}[1:]") == "bc"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match=rf"{name} is not a whole (Parquet|Arrow) file"):
        load_examples(str(file))
    parquet.write_table(pa.table({"instruction": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b.parquet row 1: field 'output' is missing"):
        load_examples(str(tmp_path / "b.parquet"))


def test_patterns_and_lists_of_sources(tmp_path, jsonl):
    first, second = jsonl(*rows("a", "b"), name="1.jsonl"), jsonl(*rows("c", "d"), name="2.jsonl")
    columns(tmp_path / "in" / "3.parquet", "e", "f")
    assert read(f"{tmp_path}/*.jsonl") == read(f"{tmp_path}/[12].jsonl") == "abcd"
    assert read(f"{tmp_path}/*.jsonl[1:3]") == "bc"
    assert read(f"{tmp_path}/**/*.*") == "abcdef"
    assert read([f"{second}[1:]", str(first)], limit=2) == "da"
    found = loaded([f"{tmp_path}/*.jsonl", f"{first}[:1]"])
    assert (found.rows, found.sources) == (5, [f"2 files {tmp_path}/*.jsonl", str(first)])
    with pytest.raises(InputError, match=r"no file matches .*/\*\.csv"):
        load_examples(f"{tmp_path}/*.csv")
    jsonl({"question": "x", "output": "y"}, name="3.jsonl")
    with pytest.raises(InputError, match=r"3.jsonl:1: field 'instruction' is missing \(the row has question"):
        load_examples(f"{tmp_path}/*.jsonl")
    with pytest.raises(InputError, match=r"is a slice without rows of 4; widen it"):
        load_examples(f"{tmp_path}/[12].jsonl[4:]")


def test_a_folder_of_files_by_split(tmp_path):
    for name in ("train-0", "train-1", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text(json_lines(name[-1]))
    source = str(tmp_path)
    assert read(source) == "01"
    assert read(f"{source}:test") == read(f"{source}::test") == read(source, use="test") == "t"
    found = loaded(f"{source}:test")
    assert found.sources == [f"{source} (split test)"]
    assert loaded(source).sources == [f"{source} (split train, 2 files)"]
    (tmp_path / "train-2.csv").write_text("instruction,output\na,b\n")
    assert loaded(source).sources == [f"{source} (split train, 2 files, left out: 1 of other formats)"]
    with pytest.raises(InputError, match=r"no split 'dev'; name one of train, test, as in .*::train"):
        load_examples(f"{source}:dev")
    with pytest.raises(InputError, match=r"no split 'validation'; name one of train, test"):
        load_examples(source, use="valid")
    (tmp_path / "data" / "train-0.jsonl").write_text(json_lines("a") + "{")
    with pytest.raises(InputError, match=r"data/train-0.jsonl:2: not valid JSON"):
        load_examples(source)


CARD = """---
configs:
- config_name: {0}
  data_files: [{{split: train, path: "{0}/*.csv"}}]
- config_name: {1}
  data_files: [{{split: train, path: "{1}/*.csv"}}, {{split: rest, path: "rest/*.csv"}}]
---
"""


def configured(folder: Path, *names):
    for number, name in enumerate([*names, "rest"]):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.csv").write_text(f"instruction,output\n{'xyz'[number]},b\n")
    (folder / "README.md").write_text(CARD.format(*names))
    return folder


def test_a_folder_with_configurations(tmp_path):
    source = str(configured(tmp_path / "a", "main", "other"))
    for names, found in ((":main", "x"), (":other", "y"), (":other:rest", "z"), (":main:train[:1]", "x")):
        assert read(f"{source}{names}") == found
    assert loaded(f"{source}:main").sources == [f"{source} (configuration main, split train)"]
    for names, message in (
        ("", r"has several configurations; name one of main, other, as in .*:main$"),
        (
            ":none",
            r"neither a configuration 'none' nor a default one with such a split; name one of main, oth",
        ),
        (":none:train", r"no configuration 'none'; name one of main, other"),
        (":other:test", r"no split 'test'; name one of train, rest, as in .*:other:train$"),
    ):
        with pytest.raises(InputError, match=message):
            load_examples(f"{source}{names}")
    assert read(str(configured(tmp_path / "b", "default", "other"))) == "x"


def test_folders_of_save_to_disk(tmp_path):
    whole = Dataset.from_list(rows("a", "b", "c"))
    whole.select([2, 0]).save_to_disk(tmp_path / "one")
    DatasetDict(train=whole, test=whole.select([1])).save_to_disk(tmp_path / "several")
    assert read(str(tmp_path / "one")) == "ca"
    assert read(f"{tmp_path}/several[:2]") == "ab"
    assert read(f"{tmp_path}/several:test") == read(f"{tmp_path}/several", use="test") == "b"
    assert loaded(f"{tmp_path}/several").sources == [f"{tmp_path}/several (split train)"]
    with pytest.raises(InputError, match=r"no split 'dev'; name one of train, test"):
        load_examples(f"{tmp_path}/several:dev")
    with pytest.raises(
        InputError, match=r"is a single split, as save_to_disk wrote it; give the folder alone"
    ):
        load_examples(f"{tmp_path}/one:train")
    assert read(f"{tmp_path}/several:default:test") == "b"
    with pytest.raises(
        InputError, match=r"no configuration 'other', .* name the split alone, as in .*/several::train$"
    ):
        load_examples(f"{tmp_path}/several:other:train")
    (tmp_path / "several" / "test" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"several/test/state.json is not valid JSON \(.*; save the data"):
        load_examples(f"{tmp_path}/several")
    (tmp_path / "several" / "dataset_dict.json").write_text("{}")
    with pytest.raises(InputError, match=r"several/dataset_dict.json has no 'splits'; save the data set"):
        load_examples(f"{tmp_path}/several")
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(InputError, match=r"cannot be read \(.*repair it, or take other files"):
        load_examples(str(tmp_path / "one"))


def test_a_folder_that_holds_no_data(tmp_path):
    with pytest.raises(InputError, match=r"holds no data files; give a folder with JSON, CSV"):
        load_examples(str(tmp_path))
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"needs a script of its own, which amid does not run"):
        load_examples(str(tmp_path))


def test_the_guide_quotes_sources_as_the_shell_and_the_command_line_read_them():
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "data.md").read_text()
    rows_ = [
        line.split("`")[1] for line in guide.splitlines() if line.startswith(("| `data.t", '| `"data.t'))
    ]
    read_ = [parts_of(parsed_overrides(shlex.split(row))[0].value()) for row in rows_]
    assert read_ == [
        ["my/train.jsonl"],
        ["my/train.jsonl.zst"],
        ["my/*.jsonl"],
        ["my/folder"],
        ["OWNER/NAME"],
        ["OWNER/NAME:main:train"],
        ["hf://datasets/OWNER/NAME/FILE"],
        ["hf://datasets/OWNER/NAME/data/*.jsonl"],
        ["my/*.jsonl[1000:]"],
        ["my/a.jsonl", "my/b.csv[:5]", "OWNER/NAME:main"],
    ]


def test_a_list_that_is_quoted_wrongly_is_shown_quoted_rightly():
    typed = "[my/train.jsonl,f/a.csv[:5]]"
    right = "\"{}=[my/train.jsonl,'f/a.csv[:5]']\""
    with pytest.raises(InputError) as error:
        load_examples(typed)
    assert str(error.value) == (
        f"data source {typed!r} is a list in quotes; put quotes around the whole argument and around each "
        f"source with a slice: {right.format('KEY')}"
    )
    with pytest.raises(InputError) as error:
        parsed_overrides([f"data.train={typed}"])
    assert str(error.value).endswith(right.format("data.train"))
    (again,) = parsed_overrides(shlex.split(right.format("data.train")))
    assert again.value() == ["my/train.jsonl", "f/a.csv[:5]"]
    with pytest.raises(InputError, match=r"""the shell leaves: "data.train='my/a.jsonl\[1:\]'"$"""):
        parsed_overrides(["data.train=my/a.jsonl[1:]"])


def test_what_is_no_source_is_one_line_with_a_remedy(tmp_path, jsonl):
    file = str(jsonl(*rows("a", "b")))
    DatasetDict(train=Dataset.from_list(rows("a"))).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    slices = "write rows as FILE[START:STOP], with whole numbers from 0 or none"
    for source, message in (
        ("", "data source '' is empty; give a file, a folder or OWNER/NAME"),
        (
            f"{file}::train",
            f"data source '{file}::train': {file} is a file and has no split; give {file} alone",
        ),
        (
            f"{saved}[:1]::test",
            f"data source '{saved}[:1]::test': the slice comes last; write {saved}::test[:1]",
        ),
        *(
            (f"{of}{rows_}", f"data source '{of}{rows_}': {slices}")
            for of in (file, "owner/set:main")
            for rows_ in ("[:10%]", "[a:b]", "[3]", "[-3:]", "[::2]", "[]")
        ),
    ):
        with pytest.raises(InputError) as error:
            load_examples(source)
        assert str(error.value) == message


def test_text_files_are_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"three"))
    assert list(load_documents(f"{tmp_path}/*.txt*")) == ["one\ntwo\n", "three"]
    assert list(load_documents(f"{tmp_path}/*.txt*[1:]", tmp_path)) == ["three"]
    with pytest.raises(InputError, match="slice without rows of 2"):
        load_documents(f"{tmp_path}/*.txt*[2:]")


def test_examples_on_disk_are_the_same(tmp_path, jsonl):
    source = str(jsonl(*rows("a", "b", "c", "d"), {"instruction": "e", "output": ""}))
    kept = loaded(source, folder=tmp_path / "cache")
    assert (kept.rows, kept.empty) == (5, 1)
    assert kept.examples == load_examples(source)
    assert [kept.examples[i].instruction for i in (-1, 0)] == ["d", "a"]
    assert [e.instruction for e in kept.examples[1:3]] == ["b", "c"]
    assert kept.examples != load_examples(f"{source}[1:]")
    assert not any((tmp_path / "cache").iterdir())
    with pytest.raises(IndexError):
        kept.examples[4]


def test_a_slice_reads_no_further_than_its_end(jsonl):
    source = str(jsonl(*rows("a", "b"), "{"))
    assert read(f"{source}[:2]") == read(source, limit=2) == "ab"
    with pytest.raises(InputError, match=":3: not valid JSON"):
        load_examples(source)


CARD_OF_HUB = (
    "---\nconfigs:\n"
    + "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - {{split: {of}, path: {name}/{of}.jsonl}}\n" for of in splits)
        for name, splits in (("main", ("train", "test")), ("more", ("train",)))
    )
    + "---\n"
)
FILES = {
    "README.md": CARD_OF_HUB,
    "main/train.jsonl": json_lines("a", "b", "c"),
    "main/test.jsonl": json_lines("t"),
    "more/train.jsonl": json_lines("m"),
}


def test_a_set_of_the_hub_by_configuration_split_slice_and_revision(hub):
    commit = hub.add("owner/set", FILES, "dataset")
    assert read("owner/set:main") == read("owner/set:main:train") == "abc"
    assert read("owner/set:main:train[1:]") == "bc"
    assert read("owner/set:main", use="test") == read("hf://datasets/owner/set:main:test") == "t"
    assert loaded("owner/set:more").sources == [
        f"owner/set (configuration more, split train, revision {commit[:7]})"
    ]
    hub.add("owner/set", {"main/train.jsonl": json_lines("x")}, "dataset")
    assert read("owner/set:main") == "x"
    assert read(f"owner/set@{commit}:main") == "abc"
    hub.add("owner/set", {"README.md": "", "train.csv": "instruction,output\nv,w\n"}, "dataset", "v1")
    assert read("owner/set@v1") == read("hf://datasets/owner/set@v1/train.csv") == "v"


def test_a_pattern_of_files_of_the_hub(hub):
    hub.add("owner/set", FILES, "dataset")
    assert read("hf://datasets/owner/set/main/*.jsonl") == "tabc"
    assert read("hf://datasets/owner/set/*/train.jsonl[2:]") == "cm"
    with pytest.raises(InputError, match=r"no file of owner/set matches \*.csv; it has README.md, main/test"):
        load_examples("hf://datasets/owner/set/*.csv")


def test_a_slice_of_a_set_of_the_hub_is_read_in_a_stream(hub):
    hub.add("owner/set", FILES, "dataset")
    assert read("owner/set:main:train[1:2]") == "b"
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).glob("owner___set/**/*.arrow"))


def test_the_cache_of_a_set_is_read_where_the_hub_is_not(hub, monkeypatch):
    commit = hub.add("owner/set", FILES, "dataset")
    assert read("owner/set:main") == "abc"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert read("owner/set:main") == read("owner/set") == read("owner/set:main:train[:3]") == "abc"
    assert read(f"owner/set@{commit}:main:test") == read("owner/set:test") == "t"
    assert not hub.requests
    for source, message in (
        ("owner/set:more:train", "no configuration 'more'; name one of main"),
        (f"owner/set@{'0' * 40}", "and its cache has none"),
        ("owner/other", "and its cache has none"),
    ):
        with pytest.raises(InputError, match=message):
            load_examples(source)


def test_what_the_hub_does_not_give_is_one_line_with_a_remedy(hub):
    hub.add("owner/set", FILES, "dataset")
    hub.add("owner/gated", FILES, "dataset", gated=True)
    hub.add("owner/script", {"script.py": "raise SystemExit"}, "dataset")
    hub.add("owner/empty", {"notes.xyz": "x"}, "dataset")
    hub.add("owner/torn", {"a.parquet": b"PAR1"}, "dataset")
    for source, message in (
        ("owner/none", rf"is neither here nor at {hub.url}/datasets/owner/none; check the name, or log in"),
        ("owner/set@v2:main", r"has a revision that does not exist; choose a branch, tag or commit from"),
        ("owner/set", r"has several configurations; name one of main, more, as in owner/set:main$"),
        ("owner/set:other:train", r"no configuration 'other'; name one of main, more"),
        ("owner/set:main:dev", r"no split 'dev'; name one of train, test, as in owner/set:main:train$"),
        ("owner/set:main:train[9:]", r"is a slice without rows of 3; widen it"),
        ("owner/set:main:train[9:12]", r"is a slice without rows of 3; widen it"),
        (
            "owner/gated",
            rf"is gated: accept its licence at {hub.url}/datasets/owner/gated, and log in",
        ),
        ("owner/script", r"needs a script .* does not run; .*owner/script@refs/convert/parquet"),
        ("owner/empty", r"holds no data files"),
        (
            "owner/torn",
            r"cannot be read \(.*Parquet.*\); take files one by one: hf://datasets/owner/torn/FILE",
        ),
        ("hf://datasets/owner/set/none.jsonl", r"is no file that the hub has; check the name"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_examples(source)
        assert "\n" not in str(error.value)


def test_an_estimate_downloads_no_set(hub):
    """The card says how many rows there are; otherwise they are counted."""
    known = "---\ndataset_info:\n  splits:\n  - {name: train, num_examples: 900000}\n---\n"
    hub.add("owner/large", {"README.md": known, "train.jsonl": json_lines(*"abc")}, "dataset")
    hub.add("owner/small", {"train.jsonl": json_lines(*"abc")}, "dataset")
    assert Facts().rows("owner/large", None) == 900_000
    assert Facts().rows("owner/large[100:300]", None) == 200
    assert not hub.asked("GET", "train.jsonl")
    assert Facts().rows("owner/small[1:]", None) == 2
