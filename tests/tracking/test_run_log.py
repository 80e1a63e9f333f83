"""run.log holds one run's messages of amid and warnings of libraries, with the time."""

import io
import logging
import re
import warnings

import pytest
from command_line import run

from amid.cli.main import main
from amid.console import announce
from amid.errors import InputError
from amid.tracking.run_log import logged, off_the_screen

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (\w+) (\S+): (.*)")


def entries(directory):
    """The level, logger and text of each line of a run's log that begins a record."""
    return [m.groups() for m in map(LINE.fullmatch, (directory / "run.log").read_text().splitlines()) if m]


@pytest.fixture
def library(request):
    """A library that prints its log by itself, as transformers and datasets do, and what it has printed."""
    logger, screen = logging.getLogger(request.node.name), io.StringIO()
    handler = logging.StreamHandler(screen)
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, screen
    assert handler in logger.handlers  # as it was before the command
    assert not logger.propagate
    logger.removeHandler(handler)


def warn(library):
    logger, _ = library
    warnings.warn("an old argument", UserWarning, stacklevel=2)
    logger.getChild("part").warning("\x1b[33ma slow path\x1b[0m")
    logging.getLogger("lightning.pytorch").info("seed set")


def test_each_run_has_its_warnings_in_its_own_log_and_none_on_the_screen(
    quick, tmp_path, capsys, monkeypatch, library
):
    def experiment(plan, directory, labels):
        warn(library)
        announce(f"this is seed {plan.seed}")
        raise InputError("enough")

    monkeypatch.setattr("amid.experiment.run.run_experiment", experiment)
    assert run("train", "-m", *quick, "seed=1,2") == 1
    out, err = capsys.readouterr()
    assert re.findall("this is seed .", out) == ["this is seed 1", "this is seed 2"]
    assert err == ("amid: seed=1: enough\namid: seed=2: enough\namid: 2 of 2 runs failed (above)\n")
    assert library[1].getvalue() == ""
    for seed in (1, 2):
        warning, slow, said = entries(tmp_path / "runs" / f"seed={seed}")
        assert warning[:2] == ("WARNING", "py.warnings")
        assert warning[2].endswith("UserWarning: an old argument")
        assert slow == ("WARNING", f"{library[0].name}.part", "a slow path")
        assert said == ("INFO", "amid", f"this is seed {seed}")


@pytest.mark.parametrize("asked", [[], ["--traceback"]])
def test_without_a_run_warnings_are_shown_only_with_tracebacks(capsys, monkeypatch, library, asked):
    monkeypatch.setattr("amid.cli.report.run", lambda folder: warn(library))
    assert main(["report", "runs", *asked]) == 0
    shown = [m.groups() for m in map(LINE.fullmatch, capsys.readouterr().err.splitlines()) if m]
    assert [text.rpartition(": ")[2] for _, _, text in shown] == (
        ["an old argument", "a slow path"] if asked else []
    )


def test_a_log_that_cannot_be_written_prints_nothing(tmp_path, capsys, library):
    (tmp_path / "run.log").mkdir()
    with logged(tmp_path):
        warn(library)
    assert (*capsys.readouterr(), library[1].getvalue()) == ("", "", "")


def test_what_is_off_the_screen_is_on_it_again_after(library):
    logger, screen = library
    with off_the_screen():
        logger.warning("off")
    logger.warning("on")
    assert screen.getvalue() == "on\n"
