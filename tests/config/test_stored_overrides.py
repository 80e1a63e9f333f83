"""Overrides of an evaluation of a run whose data are not the default ones."""

import pytest

from amid.config.overrides import check_overrides
from amid.config.run_settings import write_settings
from amid.config.stored_overrides import for_stored_settings
from amid.errors import InputError


@pytest.fixture
def run(tmp_path):
    data = {"test": {"dolly": "a.jsonl", "vicuna": "b.jsonl", "left": None}, "metrics": {"chrf": {}}}
    config = {"data": data, "generation": {"memory_share": 0.5}, "trainer": {}}
    write_settings({"config": config}, tmp_path, "hash")
    return tmp_path


@pytest.mark.parametrize(
    ("override", "accepted"),
    [
        ("~data.test.dolly", ["++data.test.dolly=null"]),
        ("data.test.dolly=c.jsonl", ["++data.test.dolly=c.jsonl"]),
        ("~data.metrics.chrf", ["++data.metrics.chrf={}", "~data.metrics.chrf"]),
        ("generation.memory_share=0.2", ["++generation.memory_share=0.2"]),
        ("+data.test.mine=c.jsonl", ["+data.test.mine=c.jsonl"]),
        ("data.max_length=900", ["data.max_length=900"]),
        ("name=mine", ["name=mine"]),
    ],
)
def test_settings_that_the_run_alone_has_are_changed_and_deleted(run, override, accepted):
    given = [f"run={run}", override]
    assert for_stored_settings(given) == [f"run={run}", *accepted]
    if "memory_share" not in override:
        check_overrides("evaluate", for_stored_settings(given))


def test_settings_of_other_data_stay_as_they_are(run):
    assert for_stored_settings(["~data.test.dolly"]) == ["~data.test.dolly"]
    given = [f"run={run}", "data=dolly", "~data.test.dolly", "generation.memory_share=1"]
    assert for_stored_settings(given) == [*given[:3], "++generation.memory_share=1"]
    several = [f"run={run},none", "~data.test.vicuna"]
    assert for_stored_settings(several)[1] == "++data.test.vicuna=null"


def test_a_set_that_the_run_does_not_have_is_refused_with_the_sets_it_has(run):
    with pytest.raises(InputError) as error:
        for_stored_settings([f"run={run}", "~data.test.selfinst"])
    ending = f"run={run} has no evaluation set selfinst, but dolly, vicuna"
    assert str(error.value) == f"~data.test.selfinst: {ending}"
    with pytest.raises(InputError, match=r"; to add it: \+data\.test\.selfinst=x\.jsonl"):
        for_stored_settings([f"run={run}", "data.test.selfinst=x.jsonl"])
