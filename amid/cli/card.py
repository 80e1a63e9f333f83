"""The entry point of `amid card`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from amid.cli.arguments import Arguments
from amid.console import shown
from amid.errors import InputError


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments of `amid card`."""
    found = Arguments(
        prog="amid card",
        description="Writes the model card of a run's student: what was distilled from what, the settings, "
        "the scores with 95%% intervals, the command, and how to load and cite it.",
        epilog="amid push uploads README.md of the run's folder, so you may edit it first.",
    )
    found.add_argument("run", metavar="RUN", help="the folder of a finished run")
    found.add_argument(
        "repository", metavar="OWNER/NAME", nargs="?", help="the name that the student gets on the hub"
    )
    found.add_argument("--output", metavar="FILE", help="the file to write; by default README.md in RUN")
    found.add_argument("--license", metavar="ID", help="a licence by the hub's id, such as apache-2.0")
    return found


def run(arguments: Sequence[str]) -> None:
    """Writes the model card of a run; prints its path.

    Raises:
        InputError: if there is no finished run with a student, or the file exists.
    """
    given = parser().parse_args(arguments)
    from amid.files import written_whole  # these imports take seconds; help and mistakes come first
    from amid.publishing.finished import FinishedRun

    finished = FinishedRun.read(Path(given.run))
    from amid.publishing.card import NO_NAME, model_card
    from amid.publishing.upload import CARD, check_repository

    if given.repository is not None:
        check_repository(given.repository)
    file = Path(given.output or finished.directory / CARD)
    if file.exists():
        raise InputError(f"{file} exists, and may hold your own words; delete it, or give --output=FILE")
    if not file.parent.is_dir():
        raise InputError(f"--output={file}: there is no folder {file.parent}; make it first")
    card = model_card(finished, given.repository or NO_NAME, given.license)
    with written_whole(file) as part:
        part.write_text(str(card), encoding="utf-8")
    print(f"Card: {shown(file)}")
