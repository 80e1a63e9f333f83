import pytest

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
