"""Uploads a student, its card and its report page to the Hugging Face hub."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id
from yaml import YAMLError

from amid.config.run_settings import stored_student
from amid.errors import InputError, first_line, shortened
from amid.files import ADAPTER_CONFIG
from amid.models.hub import HTTPError
from amid.publishing.card import NO_NAME, PAGE, model_card
from amid.publishing.finished import FinishedRun
from amid.reporting.interactive import PageTooLarge, interactive_page
from amid.reporting.page import sections
from amid.reporting.runs import read_runs
from amid.reporting.table import build_table
from amid.results import ADAPTER, check_student

CARD = "README.md"
"""The file of the card, on the hub and in a run's folder."""

_LOADED = re.compile(r'(?:\bmodel=|from_pretrained\()"([^"\s/]+/[^"\s/]+)"')
"""The repository in the code of a card that loads a model."""

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin")
"""Ends of the names of files of weights: an update deletes those it does not replace."""

_READ_ALONG = (
    *(ADAPTER_CONFIG, "chat_template.jinja", "tokenizer.json", "tokenizer.model", "vocab.json"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json"),
)
"""Files that programs read beside a student's own: its update deletes those it does not replace."""


@dataclass(frozen=True)
class Upload:
    """The files of a student for a repository of the hub.

    Args:
        repository: `OWNER/NAME`.
        files: paths of files, or their contents, by their paths in the repository.
        public: whether everybody may read the repository.
        update: whether the repository exists and gets a further commit.
    """

    repository: str
    files: Mapping[str, Path | bytes]
    public: bool = False
    update: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    @property
    def visibility(self) -> str:
        """Says who may read the repository."""
        if self.update:
            return "the visibility that it has"
        return "public" if self.public else "private"

    def push(self) -> str:
        """Uploads all files in one commit; returns the address of the repository.

        If that fails, a repository that was made for it is deleted again.

        Raises:
            InputError: if the hub does not answer, the token is missing or may not write, or the repository
                exists already, or with `update` does not exist.
        """
        api = HfApi(token=_token())
        with _refused_in_one_line(self.repository):
            _check_may_write(api)
            if not self.update:
                self._create(api)
            try:
                self._commit(api)
            except BaseException as error:
                if not self.update:
                    self._delete(api, error)
                raise
        return f"{constants.ENDPOINT}/{self.repository}"

    def _create(self, api: HfApi) -> None:
        try:
            api.create_repo(self.repository, private=not self.public)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise InputError(
                f"{self.repository} is taken: there is such a repository at "
                f"{constants.ENDPOINT}/{self.repository}; choose another name, or add a commit to it with "
                "--update"
            ) from error

    def _delete(self, api: HfApi, error: BaseException) -> None:
        """Deletes the repository that was made for an upload that failed with `error`."""
        try:
            api.delete_repo(self.repository)
        except (HTTPError, OSError) as failed:
            reason = shortened(first_line(error), 200)
            raise InputError(
                f"{self.repository} was made, and the upload failed ({reason}): it is empty now; run the "
                "command again with --update"
            ) from failed

    def _commit(self, api: HfApi) -> None:
        stale = []
        if self.update:
            there = api.list_repo_files(self.repository)
            whole = ADAPTER_CONFIG not in self.files
            old = [name for name in there if name.endswith(_WEIGHTS) or (whole and name in _READ_ALONG)]
            stale = [name for name in old if name not in self.files]
        api.create_commit(
            self.repository,
            [
                *(CommitOperationAdd(name, content) for name, content in self.files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="Upload a student distilled by amid",
        )


def upload_of(
    run: FinishedRun,
    repository: str,
    *,
    public: bool = False,
    update: bool = False,
    licence: str | None = None,
    adapter: bool = False,
) -> Upload:
    """Collects the files to upload: the student or its adapters, the card and the report page.

    The card is README.md in the run's folder if there is one, else a new one; for adapters a new one. A card
    that `amid card` wrote for another name, and nobody edited, is written anew for the upload.

    Args:
        run: the run.
        repository: `OWNER/NAME`.
        public: whether everybody may read the repository.
        update: whether the repository exists.
        licence: the hub's id of a licence for a new card; null for none.
        adapter: whether only the adapters are uploaded, without the weights that they belong to.

    Raises:
        InputError: for a name that the hub does not allow, a damaged file, an edited card of another name, or
            adapters that nobody else could use.
    """
    check_repository(repository)
    files = _adapter(run) if adapter else _student(run)
    page = _page(run)
    own = run.directory / CARD
    if own.exists() and not adapter:
        if licence is not None:
            raise InputError(
                f"--license={licence}: the licence stands in {own}; change it there, or delete it"
            )
        card = _own_card(run, own, repository, page is not None)
    else:
        text = str(model_card(run, repository, licence, adapter, page=page is not None))
        card = text.encode()
    pages = {} if page is None else {PAGE: page}
    return Upload(repository, {CARD: card, **files, **pages}, public, update)


def _own_card(run: FinishedRun, file: Path, repository: str, page: bool) -> bytes:
    """Returns the card in a run's folder, or a new one if that is unedited and of another repository.

    Raises:
        InputError: if its metadata cannot be read, or if it is edited and names another repository.
    """
    content = file.read_bytes()
    try:
        text = content.decode("utf-8")
        licence = ModelCard(text).data.get("license")
    except (ValueError, TypeError, YAMLError) as error:
        reason = shortened(str(error), 200)
        raise InputError(
            f"{file}: its metadata cannot be read ({reason}); correct its first lines"
        ) from error
    others = {*_LOADED.findall(text)} - {run.hub_id("student"), run.hub_id("teacher")}
    if not others or re.search(rf"(?<![\w./-]){re.escape(repository)}(?![\w/-])", text):
        return content
    other = min(others)
    if text == str(model_card(run, other, licence)):
        return str(model_card(run, repository, licence, page=page)).encode()
    push = "" if other == NO_NAME else f", or push to {other}"
    raise InputError(
        f"{file} names {other} in place of {repository}, and may hold your own words; write {repository} "
        f"there, or delete the file for a new card{push}"
    )


def check_repository(repository: str) -> None:
    """Checks the name of a repository.

    Raises:
        InputError: if it is no OWNER/NAME that the hub allows.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        reason = shortened(first_line(error), 150)
        raise InputError(f"{repository!r} is no OWNER/NAME of the hub ({reason}); give one") from error
    if repository.count("/") != 1:
        raise InputError(
            f"{repository!r} has no owner; write OWNER/NAME, with your user name or organisation as OWNER"
        )


def _student(run: FinishedRun) -> dict[str, Path]:
    folder = stored_student(run.directory, run.result)
    return {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}


def _adapter(run: FinishedRun) -> dict[str, Path]:
    """Returns the files of the adapters, after a check that others can have the model they belong to."""
    folder, student = run.directory / ADAPTER, run.model("student")
    if not folder.is_dir():
        why = "was trained without LoRA" if student.get("lora") is None else "has no adapters"
        raise InputError(f"--adapter-only: {run.directory} {why}; leave the option out to upload the student")
    changed = "fine-tuned (model.student.sft)" if student.get("sft") else ""
    changed = changed or ("cut to some layers (model.student.layers)" if student.get("layers") else "")
    if changed or run.hub_id("student") is None:
        what = f"was {changed} before the adapters were added" if changed else "is not on the hub"
        raise InputError(
            f"--adapter-only: the model that the adapters of {run.directory} belong to {what}, so nobody "
            "else has it; leave the option out to upload the whole student"
        )
    remedy = "put the file back from a copy, or train the student again"
    check_student(run.directory, run.result, remedy, ADAPTER)
    return {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}


def _page(run: FinishedRun) -> bytes | None:
    """Returns the report page of a run without paths of this machine; None if it would be too large."""
    with read_runs([run.directory]) as runs:
        table = build_table(list(runs.records.values()))
        try:
            text = interactive_page(runs, table, sections(runs, table))
        except PageTooLarge:
            return None
    return run.without_paths(text).encode()


def _token() -> str:
    token = get_token()
    if token is None:
        raise InputError(
            "there is no token for the hub; log in with `hf auth login`, with a token that may write, or set "
            f"HF_TOKEN ({constants.ENDPOINT}/settings/tokens)"
        )
    return token


def _check_may_write(api: HfApi) -> None:
    """Checks that the token is known and may write, as far as the hub says before an upload."""
    try:
        user = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise InputError(
            "the hub does not know the token; log in again with `hf auth login`, or correct HF_TOKEN"
        ) from error
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError(
            "the token may only read; make one that may write, at "
            f"{constants.ENDPOINT}/settings/tokens, and log in with `hf auth login`"
        )


@contextlib.contextmanager
def _refused_in_one_line(repository: str) -> Iterator[None]:
    """Turns the errors of the hub within the block into a line that says what to do.

    Raises:
        InputError: in place of an error of the hub or of the network.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise InputError(
            "HF_HUB_OFFLINE keeps from asking the hub; nothing was uploaded. Unset it to upload"
        ) from error
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, shortened(error.server_message or first_line(error), 200)
        remedy = {
            403: "the token may not write there: choose another OWNER, or a token that may",
            404: "check OWNER/NAME, or leave out --update to make it",
        }.get(status, "try again later")
        raise InputError(f"{repository}: the hub refused it ({status}: {reason}); {remedy}") from error
    except HTTPError as error:
        raise InputError(
            f"the hub at {constants.ENDPOINT} does not answer ({first_line(error)}); nothing was uploaded. "
            "Check the network and run the command again"
        ) from error
    except RuntimeError as error:  # of an upload of large files
        reason = shortened(first_line(error.__cause__ or error), 200)
        raise InputError(
            f"{repository}: the upload broke off ({reason}); nothing was uploaded. Run the command again"
        ) from error
    except ValueError as error:
        if isinstance(error, InputError) or "metadata" not in str(error).lower():
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{CARD}: {reason}; correct the lines at its top") from error
