import json

import numpy
import pytest

from amid.config.ladders import Rung
from amid.config.run_settings import write_settings
from amid.errors import Damaged, InputError
from amid.files import write_json
from amid.metrics import distinct_n, self_bleu
from amid.scoring.answers import MANIFEST, PER_PROMPT, Answer, Answered
from amid.scoring.ladders import fronts
from amid.scoring.scores import diversity_per_prompt, score_answers, self_bleus_by_seed


def scores(quality, alike, prompts="key"):
    return {
        "open": {"rouge_l": quality, "self_bleu": alike, "distinct_1": [40.0, 60.0], "prompts": prompts},
        "closed": {"exact_match": [0.0], "distinct_1": [50.0], "prompts": "other"},
    }


@pytest.fixture
def run(tmp_path):
    """A run at temperature 1 with the rungs 0.4, 0.7 and 1; the score at 1 lies in the main folder."""
    generation = {"temperature": 1.0, "temperatures": [1.0, 0.4, 0.7], "top_p": 1.0, "top_ps": None}
    write_settings({"config": {"generation": generation}}, tmp_path, "hash")
    answers = tmp_path / "generations"
    for folder, quality, alike in (
        (answers, [10.0, 20.0], [5.0, 7.0]),
        (answers / "temperature-0.4", [30.0, 50.0], [25.0, 35.0]),
        (answers / "temperature-0.7", [20.0, 30.0], [15.0, 17.0]),
    ):
        folder.mkdir()
        (folder / PER_PROMPT).write_text(json.dumps(scores(quality, alike)))
    return tmp_path


def test_a_curve_has_the_scores_of_each_prompt_at_each_rung(run):
    front = fronts(run, "open")
    assert front.temperatures == [0.4, 0.7, 1.0]
    assert numpy.array_equal(front.quality, [[30, 50], [20, 30], [10, 20]])
    assert numpy.array_equal(front.diversity, [[25, 35], [15, 17], [5, 7]])
    assert numpy.array_equal(fronts(run, "open", diversity="distinct_1").diversity, [[60, 40]] * 3)


def test_a_rung_lies_in_a_folder_of_its_own():
    assert Rung("temperature", 1).folder == "temperature-1.0"
    assert Rung("top_p", 0.95).folder == "top_p-0.95"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dataset": "opn"}, "has no answers to opn; did you mean 'open'"),
        ({"ladder": "top_p"}, "has no answers at several values of top_p; draw them: amid evaluate run="),
        ({"quality": "bleu"}, "has no bleu of each prompt of open; choose one of rouge_l"),
        ({"diversity": "distinct_2"}, "has no distinct_2 of each prompt of open; did you mean 'distinct_1'"),
        ({"dataset": "closed"}, "has no self_bleu of each prompt of closed"),
    ],
)
def test_a_curve_that_the_run_does_not_have(run, asked, message):
    with pytest.raises(InputError, match=message):
        fronts(run, **{"dataset": "open"} | asked)


def test_rungs_that_are_missing_or_of_other_prompts_or_damaged(run):
    rung = run / "generations" / "temperature-0.4"
    file = rung / PER_PROMPT
    for content, message in (
        (scores([1.0, 2.0], [1.0, 2.0], "other prompts"), "its rungs answer other prompts of open"),
        (scores([1.0], [1.0, 2.0]), "open at several temperature"),
        ({"open": {"rouge_l": ["a"]}}, r"per_prompt\.json is damaged"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(Damaged, match=message):
            fronts(run, "open")
    write_json(rung / MANIFEST, {"made_from": {}, "seconds": 1.0, "files": {PER_PROMPT: "another"}})
    with pytest.raises(Damaged, match="its bytes are not those that were written"):
        fronts(run, "open")
    file.unlink()
    with pytest.raises(InputError, match=r"temperature-0\.4/per_prompt\.json does not exist"):
        fronts(run, "open")


def seeds(*texts):
    """Two prompts with the answers of each seed."""
    return [
        [Answered(f"say {i}", "", ("a",), [Answer(text) for text in row]) for i, row in enumerate(of)]
        for of in texts
    ]


def test_the_diversity_of_a_prompt_is_the_mean_over_seeds():
    first, second = [["a b c d", "a b c e"], ["x", "x"]], [["a b", "c d"], ["y z", "y"]]
    by_seed = seeds(first, second)
    alike = self_bleus_by_seed(by_seed)
    of_prompts = diversity_per_prompt(by_seed, alike)
    for i in range(2):
        assert of_prompts["self_bleu"][i] == pytest.approx((self_bleu(first[i]) + self_bleu(second[i])) / 2)
        both = distinct_n(first[i], n=1) + distinct_n(second[i], n=1)
        assert of_prompts["distinct_1"][i] == pytest.approx(both / 2)
    assert of_prompts["distinct_2"] == pytest.approx([(100 * 4 / 6 + 100) / 2, (0 + 100) / 2])
    mean = score_answers(by_seed, {})["self_bleu"].mean
    assert sum(of_prompts["self_bleu"]) / 2 == pytest.approx(mean)


def test_one_answer_a_seed_is_compared_with_the_other_seeds():
    by_seed = seeds([["a b"], ["x"]], [["a b"], ["y"]])
    assert self_bleus_by_seed(by_seed) == [pytest.approx([100, 0])]
    of_prompts = diversity_per_prompt(by_seed, self_bleus_by_seed(by_seed))
    assert of_prompts["distinct_1"] == [50, 100]
    assert score_answers(by_seed, {})["self_bleu"].values == [pytest.approx(50)]


def test_a_single_answer_has_no_self_bleu():
    by_seed = seeds([["a b a b"], ["x"]])
    assert self_bleus_by_seed(by_seed) == []
    assert diversity_per_prompt(by_seed, []).keys() == {"distinct_1", "distinct_2"}
