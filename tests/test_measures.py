import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import amid
from amid.measures import MEASURES, OF_ANSWERS, RUN, SCORES, VALIDATION, in_order, k_of, ks_of, measure_of
from amid.results import quality_metrics


def test_each_name_and_each_title_stands_once_in_its_kind():
    for key in ("name", "title"):
        counts = Counter((measure.kind, getattr(measure, key)) for measure in MEASURES)
        assert set(counts.values()) == {1}
    assert len({measure.title for measure in SCORES.values()}) == len(SCORES)


def test_direction():
    names = ("bleu", "corpus_self_bleu", "overlong", "length", "of_mine")
    assert {name: measure_of(name).better for name in names} == {
        "bleu": "higher",
        "corpus_self_bleu": "lower",
        "overlong": "lower",
        "length": None,
        "of_mine": "higher",
    }


def test_pass_at_k():
    assert [k_of(name) for name in ("pass_1", "pass_12", "pass_0", "pass_01", "pass_k", "12", "bleu")] == (
        [1, 12, None, None, None, None, None]
    )
    assert ks_of(["pass_12", "bleu", "pass_2", "pass_12"]) == [2, 12]
    assert (measure_of("pass_4").title, measure_of("pass_4").better) == ("pass@4", "higher")
    assert measure_of("pass_4").meaning == "chance that one of 4 answers at least is right"
    assert in_order(["pass_12", "mine", "overlong", "pass_2", "rouge_l"])[:2] == ["rouge_l", "overlong"]
    assert quality_metrics([["pass_1", "rouge_l", "exact_match", "overlong"]]) == ["rouge_l"]


def test_a_metric_of_ones_own_is_written_as_it_is_called():
    mine = measure_of("of_mine")
    assert (mine.title, mine.head, mine.logged, mine.number(12.345)) == (
        "of_mine",
        "of_mine",
        "valid/of_mine",
        "12.3",
    )
    assert mine.shown == SCORES["rouge_l"].shown


@pytest.mark.parametrize(
    ("measure", "value", "head", "text"),
    [
        (VALIDATION["same_top"], 0.5, "Same top token (%)", "50.0"),
        (VALIDATION["kl_pq"], -0.0001, "KL(p ‖ q) (nats/token)", "0.000"),
        (RUN["step_seconds"], 1.25, "Step (ms)", "1,250.0"),
        (RUN["peak_memory"], 1.5e9, "Memory (GB)", "1.50"),
        (OF_ANSWERS["self_bleu"], 41.26, "Self-BLEU", "41.3"),
    ],
)
def test_numbers_are_written_in_their_unit(measure, value, head, text):
    assert (measure.head, measure.number(value)) == (head, text)


def test_the_table_needs_no_torch():
    code = "import sys, amid.measures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_other_module_writes_a_title_out():
    """A title of more than one word, or of capitals, as a whole string of a module."""
    titles = {of.title for of in MEASURES if re.search(r"[ -]|[A-Z].*[A-Z]", of.title)}
    package = Path(amid.__file__).parent
    spelt = {
        (str(file.relative_to(package)), node.value)
        for file in package.rglob("*.py")
        if file.name != "measures.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in titles
    }
    assert spelt == set()


def test_the_documentation_names_each():
    pages = Path(__file__, "../../docs/how-to").resolve()
    scores, run_folder = (
        (pages / f"{page}.md").read_text(encoding="utf-8") for page in ("scores", "run-folder")
    )
    assert [name for name in SCORES if f"`{name}`" not in scores] == []
    assert [name for name in VALIDATION if f"`valid_{name}`" not in run_folder] == []
