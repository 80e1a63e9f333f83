import csv

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from amid.data import Example
from amid.data.sources import load_examples, read_examples
from amid.errors import InputError

ROW = {"instruction": "Say hi.", "input": "", "output": "Hi."}


def test_reads_one_output_or_several_and_leaves_out_empty_ones(jsonl):
    path = jsonl(ROW, {"instruction": "x", "output": ["a", "", "b"]}, {"instruction": "y", "output": ""})
    examples = read_examples(path)
    assert [example.outputs for example in examples] == [("Hi.",), ("a", "b")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([ROW, '{"instruction": '], r"data.jsonl:2: not valid JSON"),
        (["[1]"], r":1: a list, not a JSON object"),
        ([{"instruction": "x"}], r":1: field 'output' is missing"),
        ([{"instruction": 3, "output": "x"}], r":1: field 'instruction' is 3, not a string"),
        ([], r"is empty"),
        ([{"instruction": "x", "output": " "}], r"all 1 rows have an empty 'output'"),
    ],
)
def test_names_file_line_and_field_of_a_mistake(jsonl, lines, message):
    with pytest.raises(InputError, match=message):
        read_examples(jsonl(*lines))


@pytest.fixture
def table(tmp_path):
    """Writes rows to a CSV or Parquet file."""

    def write(name, rows):
        path = tmp_path / name
        if path.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            parquet.write_table(pa.Table.from_pylist(rows), path)
        return path

    return write


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ANY_ROWS = st.lists(st.tuples(TEXT, TEXT, TEXT.filter(str.strip)), min_size=1, max_size=4)


@given(ANY_ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_rows_in_any_format_are_the_same_examples(jsonl, table, rows):
    dicts = [{"instruction": a, "input": b, "output": c} for a, b, c in rows]
    expected = [Example(a, b, (c,)) for a, b, c in rows]
    files = [jsonl(*dicts), table("a.csv", dicts), table("a.parquet", dicts)]
    assert [read_examples(file) for file in files] == [expected] * 3


def test_fields_by_their_names_nested_and_in_a_list(table, jsonl):
    rows = [{"pair": {"de": "Hund", "en": ["dog", "hound"]}, "a.b": "x"}]
    fields = {"instruction": "pair.de", "input": "a.b", "output": "pair.en"}
    for path in (table("pairs.parquet", rows), jsonl(*rows)):
        assert read_examples(path, fields) == [Example("Hund", "x", ("dog", "hound"))]
    assert load_examples(f"{path}[:1]", fields=fields)[0].input == "x"
    with pytest.raises(
        InputError, match=r"field 'pair.fr' is missing \(the row has pair, a.b\).*data.fields"
    ):
        read_examples(path, fields | {"output": "pair.fr"})


def test_null_is_no_text_but_may_be_an_input(table):
    row = {"instruction": "a", "input": None, "output": "b"}
    path = table("a.parquet", [row, row | {"input": "x"}])
    assert [example.input for example in read_examples(path)] == ["", "x"]
    with pytest.raises(InputError, match=r"b.parquet row 2: field 'output' is None, not a string"):
        read_examples(table("b.parquet", [row, row | {"output": None}]))


@pytest.mark.parametrize("fields", [{}, {"instruction": "a"}, {"instruction": "a", "output": "b", "c": "d"}])
def test_fields_that_do_not_fit(jsonl, fields):
    with pytest.raises(InputError, match=r"data.fields names .*it needs 'instruction' and 'output'"):
        read_examples(jsonl(ROW), fields)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"instruction,output\nx\n", r"a.csv:2: not as many values"),
        ("a.csv", b"instruction,output\nx,y\nx,y,z\n", r"a.csv:3: not as many values"),
        ("a.csv", b'instruction,output\nx,"y', r"a.csv is not valid CSV near line 1"),
        ("a.csv", b"instruction,output\nx,\xff", r"a.csv is not UTF-8"),
        ("a.csv", b"instruction,output\n", r"a.csv is empty"),
        ("a.csv", b"instruction,output\nx,\n", r"all 1 rows have an empty 'output'"),
        (
            "a.csv",
            b"\xef\xbb\xbfinput,output\nx,y\n",
            r"field 'instruction' is missing .*has input, output\)",
        ),
        ("a.parquet", b"PAR1 and no more", r"a.parquet is not a whole Parquet file"),
    ],
)
def test_files_that_are_not_whole(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_examples(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_that_is_not_there(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"no.{suffix} cannot be read"):
        read_examples(tmp_path / f"no.{suffix}")


def test_slices(jsonl):
    path = jsonl(*({"instruction": str(i), "output": "x"} for i in range(5)))
    assert [e.instruction for e in load_examples(f"{path}[1:3]")] == ["1", "2"]
    assert [e.instruction for e in load_examples(f"{path}[3:]")] == ["3", "4"]
    assert len(load_examples(str(path), limit=2)) == 2
    with pytest.raises(InputError, match="slice without rows"):
        load_examples(f"{path}[9:]")


def test_a_file_that_is_not_there_and_a_hub_name_that_is_not_whole():
    with pytest.raises(InputError, match=r"nowhere.jsonl cannot be read"):
        load_examples("nowhere.jsonl")
    with pytest.raises(InputError, match="is incomplete"):
        load_examples("hf://datasets/MiniLLM/dolly")


@pytest.mark.parametrize(
    ("file", "rows"),
    [("dolly/train", 11435), ("dolly/valid", 500), ("selfinst/valid", 242), ("vicuna/valid", 80)],
)
def test_real_sets(shared, file, rows):
    assert len(read_examples(shared / "data" / f"{file}.jsonl")) == rows


def test_other_strings_and_numbers_of_a_row_are_kept(table, jsonl):
    row = {"question": "a", "output": "no", "reply": "b", "category": "qa", "level": 3, "share": 0.5}
    fields = {"instruction": "question", "output": "reply"}
    kept = {"output": "no", "category": "qa", "level": 3, "share": 0.5}
    nested = {"tags": ["x"], "about": {"of": "y"}, "none": None}
    for path in (jsonl(row | nested), table("a.parquet", [row | nested])):
        assert [example.fields for example in read_examples(path, fields)] == [kept]
    (example,) = read_examples(table("a.csv", [row]), fields)
    assert example.fields == {name: str(value) for name, value in kept.items()}
