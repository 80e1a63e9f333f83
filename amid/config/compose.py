"""Composes the configuration, registers its resolvers, and checks it before a run."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amid.config.folders import folders_to_search, not_text
from amid.config.run_names import WITH_THE_REST, Naming
from amid.config.secrets import remember
from amid.errors import InputError

KEYS_OF_SWEEPS = ("baselines", "scales")
"""Root keys of a sweep file that are no part of a run's configuration."""

WANDB = "https://api.wandb.ai"

SECONDS_TO_ANSWER = 5.0


class _Folders(SearchPathPlugin):
    """Makes Hydra look for configurations in the user's folders, after amid's own folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the user's folders to the search path."""
        for entry in folders_to_search():
            search_path.append("amid", entry)


def register_resolvers() -> None:
    """Makes the resolvers that conf/ uses known to OmegaConf, and the folders of configurations to Hydra."""
    Plugins.instance().register(_Folders)
    for name, resolver in (
        ("minus", lambda a, b: a - b),
        ("run_name", _run_name),
        ("run_dir", lambda: HydraConfig.get().runtime.output_dir),
        ("multirun", lambda: HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN),
        ("folder_name", lambda folder: Path(folder).name),
        ("wandb_offline", without_wandb),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _run_name(output_dir: str = "", *varying: str) -> str:
    """Returns the name of the folder of Hydra's current run in `output_dir` (`Naming`)."""
    settings = tuple(name for name in varying if name != WITH_THE_REST)
    naming = Naming(Path(output_dir), settings, rest=WITH_THE_REST in varying)
    return naming.name(overrides_of(HydraConfig.get()))


def overrides_of(hydra: Any) -> list[str]:
    """Returns the overrides of a run as they were typed, from Hydra's part of its configuration.

    An override that takes a secret from the environment holds `${oc.env:NAME}`, not the secret.
    """
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(overrides)


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """Returns a checked `cfg` as resolved plain values.

    `model.student` is the student that `cfg` names. Keys that only sweeps read are left out.
    """
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    for key in KEYS_OF_SWEEPS:
        settings.pop(key, None)
    settings["model"]["student"] = settings["model"][settings.pop("student_is")]
    remember(settings)
    return settings


def without_wandb() -> bool:
    """Returns whether W&B is out of reach: no account is set up, WANDB_MODE says so, or nothing answers."""
    import urllib.error
    import urllib.parse
    import urllib.request

    if os.environ.get("WANDB_MODE", "online") != "online":
        return True
    server = os.environ.get("WANDB_BASE_URL", WANDB)
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = str(urllib.parse.urlsplit(server).hostname)
    known = netrc.exists() and host in netrc.read_text(errors="replace")
    if not (known or os.environ.get("WANDB_API_KEY")):
        return True
    try:
        urllib.request.urlopen(server, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:
        return False
    except OSError:
        return True
    return False


def composed(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration of an entry point with overrides, with Hydra's own part.

    Raises:
        InputError: saying what Hydra or YAML cannot read.
    """
    try:
        return compose(config_name, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(reason_of_hydra(error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{not_text()}: {error}; save your YAML files as UTF-8") from error


def reason_of_hydra(error: BaseException) -> str:
    """Returns the message of Hydra or YAML about an unreadable configuration, without its search path."""
    links = [error, *([error.__cause__] if error.__cause__ is not None else [])]
    lines = [re.split(r"Config search path|\bfull_key:", str(link))[0] for link in links]
    said = "; ".join(dict.fromkeys(" ".join(line.split()).rstrip(". ") for line in lines))
    if isinstance(error, yaml.YAMLError):
        return f"{said}; mend this YAML file"
    if "Could not load" in said:
        return f"{said}; name a file that there is in its defaults list"
    return said
