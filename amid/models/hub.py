"""The Hugging Face hub, where it answers and where it does not."""

import contextlib
import re
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from amid.errors import chain_of, first_line

SECONDS_TO_ANSWER = 5.0

HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The errors of the HTTP client that this version of huggingface_hub uses, such as a broken connection."""

NOT_CACHED = "and its cache has none"
"""The end of the reason if the hub was not asked."""


def ask_its_cache_alone_if_it_is_silent() -> None:
    """Works as with `HF_HUB_OFFLINE=1` in this process from now on, if the hub does not answer.

    Files in the cache are then found, and files outside it fail at once. Otherwise each file would be
    requested six times in half a minute.
    """
    if not (constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True


_asked: dict[str, bool] = {}
"""Whether an address answered when it was asked, once in a process."""


def _answers(endpoint: str) -> bool:
    if endpoint not in _asked:
        try:
            get_session().head(endpoint, timeout=SECONDS_TO_ANSWER)
            _asked[endpoint] = True
        except Exception:  # whatever the HTTP client of this version of the hub raises
            _asked[endpoint] = False
    return _asked[endpoint]


def commit_of(name: str, kind: str, revision: str | None = None) -> str:
    """Returns the commit that a branch or tag of a repository stands for; its cache says so if the hub is not
    asked.

    Args:
        name: OWNER/NAME.
        kind: model or dataset.
        revision: a branch, a tag or a commit; null for main.

    Raises:
        HfHubHTTPError: if the hub has no such repository or revision, or keeps it from the user.
        LocalEntryNotFoundError: if the hub is not asked, and the cache does not know the commit.
    """
    revision = revision or constants.DEFAULT_REVISION
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if not constants.HF_HUB_OFFLINE:
        with contextlib.suppress(
            EntryNotFoundError
        ):  # a repository without a card: its commit is known all the same
            card = hf_hub_download(name, constants.REPOCARD_NAME, repo_type=kind, revision=revision)
            return Path(card).parent.name
    known = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind), "refs", revision)
    try:
        return known.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise LocalEntryNotFoundError(f"the cache knows no commit of {name}") from error


def reason_of(error: BaseException) -> str:
    """Returns the reason why a file of the hub could not be loaded, in one line."""
    if any(isinstance(link, LocalEntryNotFoundError | OfflineModeIsEnabled) for link in chain_of(error)):
        silent = _asked.get(constants.ENDPOINT) is False
        why = "the hub does not answer" if silent else "HF_HUB_OFFLINE keeps from asking the hub"
        return f"{why}, {NOT_CACHED}"
    return first_line(error)


def trouble_with(error: BaseException, repository: str) -> str | None:
    """Returns why a repository of the hub could not be downloaded and what to do about it; None if the error
    is of another kind.

    Args:
        error: the error of a download.
        repository: its `OWNER/NAME`, of a data set `datasets/OWNER/NAME`.
    """
    kinds = {kind for link in chain_of(error) for kind in type(link).mro()}
    page = f"{constants.ENDPOINT}/{repository}"
    if GatedRepoError in kinds:
        return f"is gated: accept its licence at {page}, and log in with `hf auth login` or set HF_TOKEN"
    if RevisionNotFoundError in kinds:
        return f"has a revision that does not exist; choose a branch, tag or commit from {page}/commits"
    if RepositoryNotFoundError in kinds:
        return (
            f"is neither here nor at {page}; check the name, or log in with `hf auth login` if it is private"
        )
    if isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError):
        reason = first_line(error)
        return (
            f"could not be downloaded from {constants.ENDPOINT} ({reason}); run the command again: it keeps "
            "the files that have arrived"
        )
    return None
