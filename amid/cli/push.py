"""The entry point of `amid push`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from amid.cli.arguments import Arguments
from amid.errors import InputError
from amid.terminal import console

if TYPE_CHECKING:
    from amid.publishing.upload import Upload


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments of `amid push`."""
    found = Arguments(
        prog="amid push",
        description="Uploads a run's student to the Hugging Face hub in one commit: its weights and "
        "tokenizer, the model card, and the report page. The repository is new and private.",
        epilog="It needs a token that may write: hf auth login, or HF_TOKEN. The card is README.md of the "
        "run's folder, if amid card wrote one. The report page shows prompts and answers.",
    )
    found.add_argument("run", metavar="RUN", help="the folder of a finished run")
    found.add_argument("repository", metavar="OWNER/NAME", help="the repository to make on the hub")
    found.add_argument("--public", action="store_true", help="make a repository that everybody may read")
    found.add_argument("--update", action="store_true", help="add a commit to a repository that exists")
    found.add_argument(
        "--adapter-only",
        action="store_true",
        help="upload the LoRA adapters without the weights of their model, which must be on the hub",
    )
    found.add_argument("--license", metavar="ID", help="a licence by the hub's id, such as apache-2.0")
    found.add_argument(
        "--dry-run", action="store_true", help="print what would be uploaded, and ask the hub nothing"
    )
    return found


def run(arguments: Sequence[str]) -> None:
    """Uploads a run's student; prints its address. With --dry-run prints the files, and uploads nothing.

    Raises:
        InputError: if there is no finished run with a student, or the hub refuses the upload.
    """
    given = parser().parse_args(arguments)
    if given.update and given.public:
        raise InputError(
            "--public with --update: a repository that exists keeps its visibility; change it on its page"
        )
    from amid.publishing.finished import FinishedRun  # these imports take seconds; mistakes come first

    finished = FinishedRun.read(Path(given.run))
    from amid.publishing.upload import upload_of

    upload = upload_of(
        finished,
        given.repository,
        public=given.public,
        update=given.update,
        licence=given.license,
        adapter=given.adapter_only,
    )
    if given.dry_run:
        _print_files(upload)
        return
    print(f"Student: {upload.push()} ({upload.visibility})")


def _print_files(upload: "Upload") -> None:
    out = console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("File")
    table.add_column("Bytes", justify="right")
    for name, size in upload.sizes.items():
        table.add_row(name, f"{size:,}")
    out.print(table)
    made = "A further commit to" if upload.update else "A new repository,"
    out.print(f"{made} {upload.repository}: {upload.visibility}. Nothing was uploaded.", markup=False)
