"""The keys of a sweep file that make its runs, typed like the settings of a run."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from amid.errors import InputError, nearest
from amid.settings.check import check_values, unknown_at_the_top
from amid.settings.nodes import Root
from amid.settings.types import Folder, Node, refuse
from amid.settings.words import is_referred_to, shown


def _defaults(value: Any) -> Any:
    fits = isinstance(value, list) and all(isinstance(entry, str | dict) for entry in value)
    builds = fits and any(isinstance(entry, str) and entry != "_self_" for entry in value)
    return value if builds else refuse("")


def _overrides(value: Any) -> Any:
    if not isinstance(value, list):
        return [] if value is None else refuse("")
    for override in value:
        if isinstance(override, dict) and len(override) == 1:
            (key, one), *_ = override.items()
            refuse(f"overrides, and one is a mapping; write it as one text: - {key}={_as_typed(one)}")
        if not isinstance(override, str) or not ("=" in override or override.startswith("~")):
            refuse(f"overrides, as - seed=1,2, and one is {shown(override)!r}; write KEY=VALUE")
        if len(words := override.split()) > 1 and all("=" in word for word in words):
            refuse(f"overrides, and one is {shown(override)!r}; write each on a line of its own")
    return value


def _baselines(value: Any) -> Any:
    if not isinstance(value, list):
        return [] if value is None else refuse("")
    for line in value:
        words = line.split() if isinstance(line, str) else []
        wrong = [word for word in words if not ("=" in word or word.startswith("~"))]
        if wrong or not words:
            refuse(
                f"runs, each a text of overrides, as - method=kd seed=1,2, and one is {shown(line)!r}; write "
                "KEY=VALUE with spaces between them"
            )
    return [line.split() for line in value]


def _scales(value: Any) -> Any:
    if not isinstance(value, dict):
        return {} if value is None else refuse("")
    for name in value:
        if not isinstance(name, str):
            refuse(f"lists of overrides by the names of scales, and {name} is no text; put it in quotes")
    return {name: _of_scale(name, overrides) for name, overrides in value.items()}


def _of_scale(name: str, overrides: Any) -> Any:
    if overrides is not None and not isinstance(overrides, list):
        refuse(f"lists of overrides, and {name} is {shown(overrides)}; write each below it, as - seed=1,2")
    return _overrides(overrides)


def _params(value: Any) -> Any:
    if not isinstance(value, dict):
        return {} if value is None else refuse("")
    for key, values in value.items():
        if not isinstance(key, str):
            refuse(f"values by setting, and {key} is no setting; write seed: 1,2,3")
        if isinstance(values, list | dict):
            one = ",".join(map(_as_typed, values)) if isinstance(values, list) else ""
            remedy = f"write {key}: {one}" if one else f"name each setting of it, {key}.KEY: A,B"
            refuse(f"values by setting, and {key} is {shown(values)}; {remedy}")
        if values is None:
            refuse(f"values by setting, and {key} has none; write them, or {key}: 'null' for null itself")
    return {key: _as_typed(values) for key, values in value.items()}


def _as_typed(value: Any) -> str:
    """Returns a single value of a YAML file as it is written on the command line."""
    return value if isinstance(value, str) else shown(value)


def _given(value: str) -> str:
    return refuse("") if value == "???" else value


class SweepFile(Node):
    """The keys of a sweep file that define its runs, besides the settings that it changes for all runs."""

    defaults: Annotated[
        Any, BeforeValidator(_defaults), Field(description="a list that builds on train: [train, _self_]")
    ]
    output_dir: Annotated[
        Annotated[Folder, AfterValidator(_given)] | None,
        Field(description="the path of a folder, or left out for outputs/ and the name of the file"),
    ] = None
    hydra: Annotated[dict[str, Any], Field(default_factory=dict, description="settings of Hydra, by name")]
    baselines: Annotated[
        Any,
        BeforeValidator(_baselines),
        Field(
            default_factory=list,
            description="a list of runs, each a text of overrides, as - method=kd seed=1,2",
        ),
    ]
    scales: Annotated[
        Any,
        BeforeValidator(_scales),
        Field(
            default_factory=dict, description="lists of overrides by the names of scales, as small: [seed=1]"
        ),
    ]


class _OfHydra(Node):
    model_config = ConfigDict(extra="allow")

    sweeper: Annotated[dict[str, Any] | None, Field(description="settings of the sweeper, by name")] = None


class _Sweeper(Node):
    model_config = ConfigDict(extra="allow")

    params: Annotated[
        Any,
        BeforeValidator(_params),
        Field(default_factory=dict, description="values by setting, as seed: 1,2,3"),
    ]


def sweep_of(content: dict[str, Any], groups: list[str]) -> tuple[SweepFile, dict[str, str]]:
    """Returns the settings of a sweep file, and its grid: the values of each setting, with commas.

    Args:
        content: the unresolved content of the file.
        groups: the groups that a primary configuration can hold besides its own keys.

    Raises:
        InputError: for the first key that is unknown or has a value of the wrong shape.
    """
    own = SweepFile.model_fields
    for key, value in content.items():
        if key not in (*own, *Root.model_fields, *groups) and not is_referred_to(str(key), [str(content)]):
            if key in ("params", "sweeper"):
                raise InputError(
                    f"{key}={shown(value)} stands at the top; write the grid below hydra.sweeper.params"
                )
            raise InputError(unknown_at_the_top(key, value, [*own, *Root.model_fields]))
    of_runs = {key: value for key, value in content.items() if key in own}
    check_values("", SweepFile, of_runs)
    of_hydra = of_runs.get("hydra", {})
    check_values("hydra.", _OfHydra, of_hydra)
    sweeper = of_hydra.get("sweeper") or {}
    check_values("hydra.sweeper.", _Sweeper, sweeper)
    for key in sweeper.keys() - {"params"}:
        if near := nearest(key, ["params"]):
            raise InputError(f"hydra.sweeper.{key}={shown(sweeper[key])}: there is no such setting{near}?")
    return SweepFile.model_validate(of_runs), _Sweeper.model_validate(sweeper).params
