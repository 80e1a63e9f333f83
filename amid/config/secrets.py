"""Secrets: finds them in settings and in text, and keeps them out of everything that amid writes."""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amid.errors import InputError

if TYPE_CHECKING:  # commands that only read results do without Hydra
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

HIDDEN = "hidden"
"""The text that replaces a secret."""

SHORTEST = 8
"""Characters of the shortest secret that is looked for in text: shorter values occur in any text."""

_WORDS = {"password", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials"}
_LAST_WORDS = {"pass", "pw", "token", "apikey", "auth", "authorization", "bearer", "cookie"}
_KINDS_OF_KEY = {"api", "access", "private", "secret", "auth", "account", "signing", "encryption", "ssh"}
_TOKENS_OF_TEXT = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "end", "start", "stop", "eot", "eom"}
_TOKENS_OF_TEXT |= {"image", "decoder", "special", "turn", "think", "prefix", "suffix", "new", "last"}
_TOKENS_OF_TEXT |= {"first"}
"""A tokenizer's names for its special tokens, which are no secrets."""

_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s'\"]+@")
_IN_QUERY = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s'\"]+)")
_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]{0,200}\d)[\w-]{20,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|xox[abeprs]-[\w-]{8,}|wandb_v1_\w{16,}"
    r"|(?<=hooks\.slack\.com/)(?:services|workflows)/[\w/-]{16,}|(?<=/)api/webhooks/\d+/[\w-]{16,}"
    r"|eyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]+|(?i:bearer)\s+[\w.~+/=-]{20,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^\0]*?(?:-----END|\Z)"
)
_PAIR = re.compile(r"(?<![\w./-])([\w./-]*\w)(=|['\"]:\s*)('[^']*'|\"[^\"]*\"|[^\s,;&'\"}{]+)")
_NAMES = {"wandb": "WANDB_API_KEY", "hf": "HF_TOKEN", "hub": "HF_TOKEN", "huggingface": "HF_TOKEN"}
"""Environment variables that a library reads by itself, by a word of the setting."""

_OF_HYDRA = ("hydra.overrides.", "hydra.runtime.", "hydra.job.name", "hydra.job.override_dirname")
"""Keys that Hydra adds; they repeat the overrides and folders."""

_known: set[str] = set()
"""The values of secrets in the configurations of this process."""


@functools.lru_cache(maxsize=10_000)
def is_secret(key: str) -> bool:
    """Returns whether a setting of this name, such as `api_key` or `dbPassword`, holds a secret."""
    last = re.split(r"[./@]", key)[-1]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower().replace("-", "_").split("_")
    words = [word for word in words if word]
    if not words:
        return False
    before = words[-2] if len(words) > 1 else ""
    return (
        bool(_WORDS & set(words))
        or (words[-1] in _LAST_WORDS and before not in _TOKENS_OF_TEXT)
        or (words[-1] == "pwd" and before != "")  # the variable PWD is the working folder
        or (words[-1] in ("key", "keys") and before in _KINDS_OF_KEY)
        or words[-1].removesuffix("s").endswith(("apikey", "accesskey", "secretkey", "authtoken"))
    )


def without_secrets(node: Any) -> Any:
    """Returns `node` with secrets hidden; it finds them by the names of settings and by the look of text.

    References such as `${oc.env:NAME}` stay.
    """
    if isinstance(node, Mapping):
        return {
            key: HIDDEN if is_secret(str(key)) and _is_plain(child) else without_secrets(child)
            for key, child in node.items()
        }
    if isinstance(node, list | tuple):
        return [without_secrets(child) for child in node]
    return hide(node) if isinstance(node, str) else node


def hide(text: str) -> str:
    """Returns `text` without secrets.

    It hides values of settings with a secret's name, secrets in addresses, tokens of known shapes, and the
    secrets of this process's configurations and environment.
    """
    text = _IN_ADDRESS.sub("", text)
    text = _IN_QUERY.sub(lambda m: f"{m[1]}={HIDDEN}" if _in_query(m[1]) else m[0], text)
    text = _SHAPES.sub(HIDDEN, text)
    text = _PAIR.sub(
        lambda m: f"{m[1]}{m[2]}{HIDDEN}" if is_secret(m[1]) and _is_plain(m[3].strip("'\"")) else m[0], text
    )
    for secret in sorted((*_known, *_of_environment()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def remember(cfg: Mapping[str, Any]) -> None:
    """Makes `hide` find the secrets of a resolved configuration in any text."""
    for name, child in _leaves(cfg, ""):
        if is_secret(name) and isinstance(child, str) and len(child) >= SHORTEST and child != HIDDEN:
            _known.add(child)


def check_overrides_for_secrets(overrides: "Sequence[Override]") -> None:
    """Refuses KEY=VALUE with a secret: it would show in folder names, files and the shell's history.

    Raises:
        InputError: naming the setting, not the value.
    """
    from hydra.core.override_parser.types import ChoiceSweep

    for override in overrides:
        value: Any = None if override.is_delete() else override.value()
        for one in value.list if isinstance(value, ChoiceSweep) else [value]:
            _refuse_in(override.key_or_group, one)


def check_for_secrets(cfg: "DictConfig", key: str = "") -> None:
    """Refuses a composed configuration, or its part called `key`, if a secret stands in its YAML files.

    Raises:
        InputError: naming the setting, not the value.
    """
    from omegaconf import OmegaConf

    _refuse_in(key, OmegaConf.to_container(cfg, resolve=False))


def _refuse_in(key: str, value: Any) -> None:
    from hydra.core.override_parser.types import QuotedString

    for name, child in _leaves(value, key):
        text = child.text if isinstance(child, QuotedString) else child
        if name.startswith(_OF_HYDRA):
            continue
        if (is_secret(name) and _is_plain(text)) or (isinstance(text, str) and _hidden_by_value(text)):
            words = re.split(r"[._]", name.lower())
            variable = next((_NAMES[word] for word in words if word in _NAMES), None)
            by_itself = (
                f"set the environment variable {variable}, which is read without it" if variable else ""
            )
            own = f"{name}='${{oc.env:{variable or 'NAME'}}}' takes it from the environment"
            raise InputError(
                f"{name}=… holds a secret, which would stand in files of the run; "
                + "; or ".join(filter(None, (by_itself, own)))
            )


def _hidden_by_value(text: str) -> bool:
    """Returns whether text looks like a secret or contains one, whatever the name of its setting."""
    text = re.sub(r"\$\{[^{}]*\}", "", text)
    address = _IN_ADDRESS.search(text)
    if address and address.group() not in ("git@", ":@"):
        return True
    queried = any(_in_query(m[1]) and _is_plain(m[2]) for m in _IN_QUERY.finditer(text))
    return queried or bool(_SHAPES.search(text)) or any(secret in text for secret in _of_environment())


def _in_query(name: str) -> bool:
    return is_secret(name) or name.lower() in ("sig", "signature", "x-amz-signature", "key", "sas")


def _is_plain(value: Any) -> bool:
    """Returns whether a secret's setting holds the secret, not a reference, path, flag or small number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    if not isinstance(value, str):
        return abs(value) >= 10**5
    nothing = ("", HIDDEN, "null", "none", "true", "false", "???")
    return not (value.startswith("${") or value.lower() in nothing or _is_path(value))


def _is_path(value: str) -> bool:
    """Returns whether a value is the path of a file with the secret."""
    return os.sep in value and len(value) < 1000 and os.path.exists(os.path.expanduser(value))


def _of_environment() -> list[str]:
    """Returns the values of secrets in the environment."""
    values = [os.environ[name] for name in os.environ if is_secret(name)]
    return [value for value in values if len(value) >= SHORTEST and not _is_path(value)]


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yields the values in nested mappings and lists, with their dotted names."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _leaves(child, key)
    else:
        yield key, node
