"""The time that a dry run expects."""

import math
from types import SimpleNamespace

from amid.cli.dry_run import _seconds


def run(tokens, seconds=None, kind="tiny"):
    return SimpleNamespace(kind=kind, cost=SimpleNamespace(tokens=tokens), seconds=seconds)


def test_the_time_of_a_run_follows_from_the_tokens_of_finished_ones_of_its_kind():
    scored, trained, other = run(0.0, 30.0), run(100.0, 20.0), run(1.0, 99.0, kind="large")
    to_do = run(50.0)
    assert _seconds(to_do, [to_do, scored, trained, other]) == 10.0, "scoring alone takes no time for a token"
    assert math.isnan(_seconds(to_do, [to_do, scored, other]))
    assert _seconds(scored, [to_do, scored]) == 30.0
