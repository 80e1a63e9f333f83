"""The Hugging Face hub, where it answers and where it does not."""

from huggingface_hub import constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from amid.errors import chain_of, first_line

SECONDS_TO_ANSWER = 5.0

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


def reason_of(error: BaseException) -> str:
    """Returns the reason why a file of the hub could not be loaded, in one line."""
    if any(isinstance(link, LocalEntryNotFoundError | OfflineModeIsEnabled) for link in chain_of(error)):
        silent = constants.ENDPOINT in _asked
        why = "the hub does not answer" if silent else "HF_HUB_OFFLINE keeps from asking the hub"
        return f"{why}, {NOT_CACHED}"
    return first_line(error)
