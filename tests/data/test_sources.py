import csv
import gzip
import json

import pyarrow as pa
import pytest
from chat import messages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from amid.data import Example, notes
from amid.data.rows import has_text
from amid.data.sources import load_documents, load_examples, loaded
from amid.errors import InputError

ROW = {"instruction": "Say hi.", "input": "", "output": "Hi."}


def examples_of(path, fields=None):
    return load_examples(str(path), fields=fields)


def test_reads_one_output_or_several_and_leaves_out_empty_ones(jsonl):
    path = jsonl(ROW, {"instruction": "x", "output": ["a", "", "b"]}, {"instruction": "y", "output": ""})
    examples = examples_of(path)
    assert [example.outputs for example in examples] == [("Hi.",), ("a", "b")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([ROW, '{"instruction": '], r"data.jsonl:2: not valid JSON"),
        (["[[1]]"], r":1: a list, not a JSON object"),
        ([ROW, "[1]"], r":2: a list, not a JSON object"),
        (["3"], r":1: a number or true or false, not a JSON object"),
        ([{"instruction": "x"}], r":1: field 'output' is missing"),
        ([{"instruction": 3, "output": "x"}], r":1: field 'instruction' is 3, not a string"),
        ([], r"is empty"),
        ([{"instruction": "x", "output": " "}], r"all 1 rows have an empty 'output'"),
        (
            [{"prompt": "x", "completion": ""}, {"messages": messages("x", " ")}],
            r"all 2 rows have an empty 'completion' or last answer \(messages\)",
        ),
    ],
)
def test_names_file_line_and_field_of_a_mistake(jsonl, lines, message):
    with pytest.raises(InputError, match=message):
        examples_of(jsonl(*lines))


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
ANY_ROWS = st.lists(st.tuples(TEXT, TEXT, TEXT.filter(has_text)), min_size=1, max_size=4)


@given(ANY_ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_rows_in_any_format_are_the_same_examples(jsonl, table, rows):
    dicts = [{"instruction": a, "input": b, "output": c} for a, b, c in rows]
    expected = [Example(a, b, (c,)) for a, b, c in rows]
    files = [jsonl(*dicts), table("a.csv", dicts), table("a.parquet", dicts)]
    assert [examples_of(file) for file in files] == [expected] * 3


def test_fields_by_their_names_nested_and_in_a_list(table, jsonl):
    rows = [{"pair": {"de": "Hund", "en": ["dog", "hound"]}, "a.b": "x"}]
    fields = {"instruction": "pair.de", "input": "a.b", "output": "pair.en"}
    for path in (table("pairs.parquet", rows), jsonl(*rows)):
        assert examples_of(path, fields) == [Example("Hund", "x", ("dog", "hound"))]
    assert load_examples(f"{path}[:1]", fields=fields)[0].input == "x"
    with pytest.raises(
        InputError, match=r"field 'pair.fr' is missing \(the row has pair, a.b\).*data.fields"
    ):
        examples_of(path, fields | {"output": "pair.fr"})


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (ROW, "leave data.fields out, and the row is read as instruction, input and output"),
        ({"prompt": "a", "completion": "b"}, "leave data.fields out, and the row is read as prompt and"),
        ({"messages": messages("a", "b")}, "leave data.fields out, and the row is read as messages"),
        ({"text": "a", "title": "b"}, "data.fields says how they are called"),
        ({"problem": "a", "solution": "b"}, "'data.fields={instruction: problem, output: solution}'"),
    ],
)
def test_wrong_fields_name_the_remedy(jsonl, row, remedy):
    with pytest.raises(InputError, match=r":1: field 'reply' is missing") as error:
        examples_of(jsonl(row), {"instruction": "ask", "input": "context", "output": "reply"})
    assert remedy in str(error.value)


@pytest.mark.parametrize("text", [",instruction,output,\n0,a,b,c\n", "instruction,output,\na,b,\n"])
def test_a_column_without_a_name_is_left_out_with_a_line(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    found = loaded(str(path))
    assert [example.fields for example in found.examples] == [{}]
    assert (
        list(notes.rows({"train": found}))[-1]
        == "Left out, a column without a name: 1 of 1 rows of data.train"
    )


def test_objects_of_a_column_have_their_own_keys_alone(table, jsonl):
    def row(name, argument):
        tool = {"function": {"name": name, "parameters": {argument: {"type": "string"}}}}
        asked, answered = messages("a", "b")
        call = {
            "role": "assistant",
            "tool_calls": [{"function": {"name": name, "arguments": {argument: "x"}}}],
        }
        return {"messages": [asked, call, {"role": "tool", "content": "1"}, answered], "tools": [tool]}

    rows = [row("f", "city"), row("g", "zip")]
    found, expected = examples_of(table("a.parquet", rows)), examples_of(jsonl(*rows))
    assert [one.conversation for one in found] == [one.conversation for one in expected]
    assert found[1].conversation.tools == tuple(rows[1]["tools"])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"a", b"\xff"]).view(pa.string()), r"after row 0 .*'utf-8' codec can't decode"),
        (pa.array([1, 10**7], pa.date32()), r"after row 0 .*date value out of range"),
        (pa.array([1, 10**17], pa.timestamp("ms")), r"after row 0 .*; repair it, or remove its column"),
    ],
)
def test_a_value_that_python_does_not_have_is_a_line(tmp_path, column, message):
    parquet.write_table(
        pa.table({"instruction": ["a", "b"], "output": ["c", "d"], "more": column}), tmp_path / "a.parquet"
    )
    with pytest.raises(InputError, match=rf"a.parquet has a value {message}"):
        examples_of(tmp_path / "a.parquet")


def test_null_is_no_text_but_may_be_an_input(table):
    row = {"instruction": "a", "input": None, "output": "b"}
    path = table("a.parquet", [row, row | {"input": "x"}])
    assert [example.input for example in examples_of(path)] == ["", "x"]
    with pytest.raises(InputError, match=r"b.parquet row 2: field 'output' is null, not a string"):
        examples_of(table("b.parquet", [row, row | {"output": None}]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "and lacks instruction and output; name those too"),
        ({"instruction": "a"}, "and lacks output; name those too"),
        ({"instruction": "a", "output": "b", "c": "d"}, "and has c; leave it out"),
    ],
)
def test_fields_that_do_not_fit(jsonl, fields, message):
    with pytest.raises(InputError, match=f"data.fields=.* must be the names of fields.*{message}"):
        examples_of(jsonl(ROW), fields)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"instruction,output\nx\n", r"a.csv:2: not as many values"),
        ("a.csv", b"instruction,output\nx,y\nx,y,z\n", r"a.csv:3: not as many values"),
        ("a.csv", b'instruction,output\nx,"y', r"a.csv is not valid CSV near line 2"),
        ("a.csv", b"instruction,output\nx,\xff", r"a.csv:2: not UTF-8 \(byte 0xff"),
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
        examples_of(path)


A, B = json.dumps({"instruction": "a", "output": "b"}), json.dumps({"instruction": "c", "output": "d"})
TWO = [Example("a", "", ("b",)), Example("c", "", ("d",))]
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", BOM + f"{A}\n{B}\n".encode()),
        ("a.jsonl", BOM + f"{A}\n".encode() + BOM + B.encode()),
        ("a.jsonl", f"{A}\r\n\r\n{B}".encode()),
        ("a.json", f"[{A}, {B}]".encode()),
        ("a.jsonl", BOM + json.dumps([json.loads(A), json.loads(B)], indent=2).encode()),
        ("a.json", "\n".join(json.dumps(json.loads(row), indent=2) for row in (A, B)).encode()),
        ("a.tsv", b"instruction\toutput\na\tb\nc\td\n"),
        ("a.csv", BOM + b"instruction,output\r\na,b\r\n\r\nc,d"),
        ("a.jsonl.gz", gzip.compress(f"{A}\n{B}".encode(), mtime=0)),
        ("a.csv.gz", gzip.compress(b"instruction,output\na,b\nc,d\n", mtime=0)),
    ],
)
def test_marks_arrays_tabs_and_gzip(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert examples_of(tmp_path / name) == TWO


def test_long_fields_deep_ones_that_no_one_reads_and_not_a_number(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\na," + "x" * 300_000 + "\n")
    assert len(examples_of(path)[0].outputs[0]) == 300_000
    path = tmp_path / "a.jsonl"
    of = '{"instruction": "a", "output": "b", "deep": ' + "[" * 500 + "]" * 500 + ', "n": NaN, "in": {"i": '
    path.write_text(of + "9" * 5000 + "}}")
    assert examples_of(path)[0].fields == {}


def row_with(rest):
    return f'{A}\n{{"instruction": "a", "output": "b", {rest}}}\n'.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (row_with(r'"more": "\ud800"'), r":2: field 'more' has half of a surrogate pair, '\\ud800'"),
        (row_with(r'"mo\udc00re": 1'), r":2: field 'mo\\udc00re' has half of a surrogate pair"),
        (f'{A}\n{{"instruction": "a", "output": ["\\udfff"]}}'.encode(), r":2: field 'output' has half"),
        (row_with('"x": ' + "[" * 100_000), r":2: lists or objects nested too deeply; remove"),
        (b"[" * 100_000, r":1: lists or objects nested too deeply"),
        (row_with('"id": ' + "9" * 5000), r":2: field 'id' is an integer of 5,000 digits; write it as a str"),
        (row_with('"id": 1e999'), r":2: field 'id' is inf; give a finite number or null"),
        (row_with('"output": "c"'), r":2: field 'output' stands there twice"),
        (b'{"instruction": "a", "output": NaN}', r":1: field 'output' is nan, not a string"),
        (b'{"instruction": "a", "output": ["b", 3]}', r":1: field 'output' is 3, not a string"),
        (b'{"instruction": {"a": 1}, "output": "b"}', r":1: field 'instruction' is an object, not a string"),
        (b'{"instruction": "a", "input": 0, "output": "b"}', r":1: field 'input' is 0, not a string"),
        (A.encode() + b"\n\0\0\0", r":2: NUL bytes, as of a file that was not written whole"),
        (b"\0" * 9, r"begins with NUL bytes"),
        (A.encode("utf-16"), r"is UTF-16, not UTF-8; convert it: iconv"),
        (A.encode("utf-16-le"), r"begins with NUL bytes: it is UTF-16"),
        (A.encode() + b'\n{"instruction": "\xe9"}', r":2: not UTF-8 \(byte 0xe9"),
        (gzip.compress(A.encode(), mtime=0), r"is packed with gzip; unpack it, or let its name end in .gz"),
        (b"PAR1...", r"is a Parquet file; let its name end in .parquet"),
        (f"[\n{A}\n{B}]".encode(), r":3: no , or \] after a row"),
        (f"[\n{A},\n{A[:-1]}".encode(), r":3: not valid JSON .*; repair the array"),
        (f"[{A}]\n{B}".encode(), r":2: the file goes on after its array"),
        (f'[\n{A},\n{{"x": 1}}\n]'.encode(), r":3: the form of the row is not recognised \(the row has x\)"),
        (b'{\n"a": 1\n}\n{\n"b": 2,\n}', r":1: the form of the row is not recognised \(the row has a\)"),
        (f"{{\n{A[1:]}\n{{\n'b': 2}}".encode(), r":3: not valid JSON \(.* at line 4, character 1\)"),
        (json.dumps({"data": [json.loads(A)]}, indent=1).encode(), r":1: .*'data', give that array alone"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"is a pointer of Git LFS"),
        (b"ARROW1\0\0", r"is an Arrow file; let its name end in .arrow"),
        (BOM, r"is empty"),
        (b"[]", r"is empty"),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_remedy(tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        examples_of(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_mistakes_of_tables_and_packed_files(tmp_path):
    for name, content, message in (
        ("a.csv", b"instruction;output\na;b\n", r"a.csv:1: the names are separated by ';'"),
        ("a.csv", b'"instruction";"output"\n"a";"b"\n', r"a.csv:1: the names are separated by ';'"),
        ("a.csv", b'instruction,output\n"a \\"b\\"",c', r"line 2 .* quotes within it are written twice"),
        ("a.csv", b"instruction,output,output\n", r"a.csv:1: the name 'output' stands there twice"),
        ("a.csv", b'instruction,output\na,b\nc,"d\ne,f\n', r"not valid CSV near line 3"),
        ("a.gz", gzip.compress(A.encode(), mtime=0)[:-9], r"a.gz is not a whole gzip file"),
        ("a.jsonl.gz", A.encode(), r"a.jsonl.gz is not a whole gzip file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            examples_of(tmp_path / name)


def test_a_prompt_and_its_completion_are_instruction_and_output(jsonl):
    found = loaded(str(jsonl(ROW, {"prompt": "a", "completion": "b", "id": 3})))
    assert found.examples[1] == Example("a", "", ("b",))
    assert found.examples[1].fields == {"id": 3}
    assert found.forms == {
        "instruction, input and output": 1,
        "prompt and completion (instruction and output)": 1,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"a b": 1, "c": "d"},
            r":1: the form of the row is not recognised \(the row has a b, c\); give instr",
        ),
        ({"question": "a", "answer": "b"}, r"'data.fields={instruction: question, output: answer}'"),
        (
            {"instruction": "a", "context": "", "response": "b"},
            r"'data.fields={instruction: instruction, input: context, output: response}'",
        ),
        ({"version": 1, "data": [ROW]}, r"if the rows are those in 'data', give that array alone"),
    ],
)
def test_other_rows_are_told_by_their_fields_with_the_setting_that_maps_them(jsonl, row, message):
    with pytest.raises(InputError, match=message):
        examples_of(jsonl(row))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("[:0]", "is a slice without rows; widen it"),
        ("[5:3]", "is a slice without rows; widen it"),
        ("[7:]", "is a slice without rows of 1; widen it"),
        ("[-5:]", r"write rows as FILE\[START:STOP\]"),
        ("[3]", r"write rows as FILE\[START:STOP\]"),
        ("[::2]", r"write rows as FILE\[START:STOP\]"),
        ("[:" + "9" * 5000 + "]", r"write rows as FILE\[START:STOP\]"),
    ],
)
def test_slices_without_rows_and_what_is_no_slice(jsonl, part, message):
    with pytest.raises(InputError, match=message):
        loaded(f"{jsonl(ROW)}{part}")


@pytest.mark.parametrize("field", [None, "", 3])
def test_a_field_that_is_mapped_to_nothing(jsonl, field):
    with pytest.raises(
        InputError, match=r"data\.fields=.* must be the names of fields; output is .*: name a field"
    ):
        examples_of(jsonl(ROW), {"instruction": "instruction", "output": field})
    without = {"instruction": "instruction", "input": None, "output": "output"}
    assert examples_of(jsonl(ROW | {"input": "x"}), without)[0].input == ""


def test_an_input_that_no_row_has(jsonl):
    fields = {"instruction": "q", "input": "context", "output": "a"}
    message = r"data\.fields\.input=context: no row has this field \(the row has q, a, ctx\); name another"
    with pytest.raises(InputError, match=message):
        examples_of(jsonl({"q": "1", "a": "2", "ctx": "3"}, {"q": "1", "a": "2", "ctx": "4"}), fields)
    some = jsonl({"q": "1", "a": "2"}, {"q": "1", "a": "2", "context": "3"})
    assert [example.input for example in examples_of(some, fields)] == ["", "3"]
    empty = jsonl({"q": "1", "a": "2", "context": None})
    assert [example.input for example in examples_of(empty, fields)] == [""]
    usual = fields | {"input": "input"}
    assert [example.input for example in examples_of(jsonl({"q": "1", "a": "2"}), usual)] == [""]


@pytest.mark.parametrize("source", [5, [{"instruction": "a"}], {"a": 1}])
def test_a_source_that_is_neither_path_nor_examples(source):
    with pytest.raises(InputError, match=r"is neither a path nor a list of amid.data.Example"):
        loaded(source)


def test_empty_rows_are_counted():
    rows = [Example("a", "", ("b",)), Example("a", "", ("", " ")), Example("a", "", ())]
    found = loaded(rows)
    assert (found.examples, found.rows, found.empty) == (rows[:1], 3, 2)
    with pytest.raises(InputError, match="no example with a response"):
        loaded(rows[1:])


def test_left_out_rows_are_those_of_the_slice(jsonl):
    outputs = ["x", "", "x", "\u200b", " \ufeff", "x", "x", ""]
    path = jsonl(*({"instruction": str(i), "output": output} for i, output in enumerate(outputs)))
    for part, limit, kept, rows in (
        ("", None, "0256", 8),
        ("[:2]", None, "02", 3),
        ("[2:]", None, "56", 5),
        ("[1:3]", None, "25", 5),
        ("", 1, "0", 1),
        ("[1:]", 2, "25", 5),
    ):
        found = loaded(f"{path}{part}", limit)
        assert "".join(example.instruction for example in found.examples) == kept
        assert (found.rows, found.empty) == (rows, rows - len(kept))


def test_documents(tmp_path):
    for name, content, found in (
        ("a.txt", BOM + b"one\r\n[two", ["one\r\n[two"]),
        ("a.txt.gz", gzip.compress(b"one", mtime=0), ["one"]),
        ("a.json", b'[{"text": "one"}, {"text": "two"}]', ["one", "two"]),
    ):
        (tmp_path / name).write_bytes(content)
        assert load_documents(str(tmp_path / name)) == found
    for content, message in (
        (b'{"text": "\\ud800"}', r"a.jsonl:1: field 'text' has half of a surrogate pair"),
        (b'{"text": 3}', r"a.jsonl:1: field 'text' is 3, not a string"),
        (b'{"body": "a"}', r"a.jsonl:1: field 'text' is missing \(the row has body\)"),
    ):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_documents(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_that_is_not_there(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"no.{suffix} cannot be read"):
        examples_of(tmp_path / f"no.{suffix}")


def test_a_table_without_rows_is_empty(tmp_path):
    parquet.write_table(pa.table({"instruction": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet is empty"):
        examples_of(tmp_path / "a.parquet")


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
        load_examples("hf://datasets/MiniLLM")


@pytest.mark.parametrize(
    ("file", "rows"),
    [("dolly/train", 11435), ("dolly/valid", 500), ("selfinst/valid", 242), ("vicuna/valid", 80)],
)
def test_real_sets(shared, file, rows):
    assert len(examples_of(shared / "data" / f"{file}.jsonl")) == rows


def test_other_strings_and_numbers_of_a_row_are_kept(table, jsonl):
    row = {"question": "a", "output": "no", "reply": "b", "category": "qa", "level": 3, "share": 0.5}
    fields = {"instruction": "question", "output": "reply"}
    kept = {"output": "no", "category": "qa", "level": 3, "share": 0.5}
    nested = {"tags": ["x"], "about": {"of": "y"}, "none": None}
    for path in (jsonl(row | nested), table("a.parquet", [row | nested])):
        assert [example.fields for example in examples_of(path, fields)] == [kept]
    (example,) = examples_of(table("a.csv", [row]), fields)
    assert example.fields == {name: str(value) for name, value in kept.items()}
