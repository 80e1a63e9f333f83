"""One check of every setting of a run: type, range, unknown keys, and settings that contradict each other."""

import functools
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from amid.config.calls import takes_names
from amid.errors import InputError, choose_one, in_one_line, shortened
from amid.settings import nodes
from amid.settings.together import check_data, check_together
from amid.settings.types import Node
from amid.settings.words import as_number, is_referred_to, keys_of, nearest_setting, other_word, shown

Values = dict[str, Any]

OF_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
"""Keys of a node that say how Hydra instantiates it."""

CALLED_WITH = {
    "divergence": ("log_a", "log_b"),
    "assistant": ("log_p", "log_q"),
    "metric": ("predictions", "references"),
}
"""The arguments with which amid calls the object that a node makes, by the kind of the node."""

NAMES_OF_STEPS = ("num_training_steps", "total_steps", "T_max", "total_iters", "steps")
"""The names that libraries give to the optimiser steps of a whole training."""

LATER = CALLED_WITH | {
    "optimizer": ("params",),
    "scheduler": ("optimizer", *NAMES_OF_STEPS),
    "data": ("tokenizer",),
    "trainer": ("callbacks", "enable_progress_bar", "logger", "default_root_dir", "plugins"),
}
"""The arguments that amid passes besides a node's keys, to instantiate it or to call what it makes."""

DERIVED_FROM = {
    "objective": "amid.losses.Loss",
    "schedule": "amid.schedule.Schedule",
    "text": "amid.text.Text",
    "generation": "amid.generation.Sampling",
    "callback": "lightning.pytorch.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
    "optimizer": "torch.optim.Optimizer",
    "scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "checkpoint": "amid.training.checkpoints.Checkpoints",
}
"""The base class that the user's own class must have, by the kind of the node."""

CALLED_LATER = ("optimizer", "scheduler")
"""Kinds of nodes that need `_partial_: true`."""


def check(cfg: DictConfig) -> None:
    """Checks every setting of a composed configuration of a run, an evaluation or a cache.

    Nothing is instantiated, and neither torch nor Lightning is imported unless a `_target_` of the user's
    own is in them.

    Raises:
        InputError: for the first setting that has a wrong type or value, does not exist, is missing, or does
            not fit another: its key, its value and the remedy.
    """
    reading = _Reading()
    settings = reading.values(cfg, "")
    _check_root(settings, reading)
    for key, kind, node in _nodes(settings):
        _check_node(key, kind, node, reading)
        if kind == "data" and node["_target_"] in nodes.BY_TARGET["data"]:
            check_data(node)  # later checks use its lengths
    if reading.missing:
        key = reading.missing[0]
        raise InputError(f"{key} has no value; give it one, {key}=VALUE (amid help {key} says what it is)")
    of_a_run = ("data.",) if "run" in settings else ()  # an evaluation takes its data from a run
    failed = {key: error for key, error in reading.failed.items() if not key.startswith(of_a_run)}
    if failed:
        key, error = next(iter(failed.items()))
        raise InputError(f"{key} cannot be resolved: {in_one_line(error)}") from error
    check_together(settings)


def has_argument(target: object, name: str) -> bool:
    """Returns whether a `_target_` of amid takes a setting `name`, even if no YAML file sets it."""
    return any(name in models[target].model_fields for models in nodes.BY_TARGET.values() if target in models)


class _Reading:
    """The values of a configuration, and the keys without a readable value."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.failed: dict[str, Exception] = {}
        self.interpolations: list[str] = []
        """The unresolved text of the interpolations in the values."""

    def values(self, node: DictConfig, prefix: str) -> Values:
        """Returns the values of a node except unresolvable ones, which are noted or reported elsewhere."""
        written: Any = OmegaConf.to_container(node, resolve=False)
        return self._values(node, written, prefix)

    def _values(self, node: DictConfig, written: Values, prefix: str) -> Values:
        found: Values = {}
        for key, value in written.items():
            name = f"{prefix}{key}"
            if not prefix and key in ("hydra", "baselines", "scales"):
                continue
            if value == "???":
                self.missing.append(name)
            elif isinstance(value, dict):
                child: Any = node._get_node(key)
                found[key] = self._values(child, value, f"{name}.")
            elif "${" not in str(value):
                found[key] = value
            else:
                self.interpolations.append(str(value))
                if not prefix.startswith("logger."):  # these interpolations ask Hydra and the network
                    self._resolve(node, key, name, found)
        return found

    def _resolve(self, node: DictConfig, key: Any, name: str, found: Values) -> None:
        try:
            value = node[key]
            if isinstance(value, DictConfig):
                found[key] = self.values(value, f"{name}.")
            else:
                found[key] = (
                    OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
                )
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            self.failed[name] = error

    def without(self, key: str) -> bool:
        """Returns whether the value of a key could not be resolved."""
        return (
            key in self.missing
            or key in self.failed
            or (key.startswith("logger.") and bool(self.interpolations))
        )


def _check_root(settings: Values, reading: _Reading) -> None:
    known = nodes.Root.model_fields
    for key, value in settings.items():
        if key not in known and not is_referred_to(str(key), reading.interpolations):
            raise InputError(unknown_at_the_top(key, value, [*known, *keys_of(settings)]))
    check_values("", nodes.Root, {k: v for k, v in settings.items() if k in known}, reading.without)


def unknown_at_the_top(key: Any, value: Any, known: list[str]) -> str:
    """Returns the message about a top-level key that is none of the settings `known`."""
    remedy = other_word(str(key))
    near = f"; {remedy}" if remedy is not None else nearest_setting(str(key), known)
    return f"{key}={shown(value)}: there is no such setting{near}"


def _nodes(settings: Values) -> Iterator[tuple[str, str, Any]]:
    """Yields the key, the kind and the value of each node that is instantiated."""
    data, model = settings.get("data"), settings.get("model")
    optional = ("divergence", "assistant", "schedule")
    needed = ("trainer", "optimizer", "scheduler", "checkpoint", "data", "generation", "text", "teacher")
    for kind in (*needed, *optional, "objective"):
        if kind in settings and not (kind in optional and settings[kind] is None):
            yield kind, kind, settings[kind]
    if isinstance(data, dict):
        if "template" in data:
            yield "data.template", "template", data["template"]
        sets = data.get("test")
        for name, source in {
            **{f"data.{name}": data.get(name) for name in ("train", "valid", "plain_text")},
            **{f"data.test.{name}": node for name, node in (sets if isinstance(sets, dict) else {}).items()},
        }.items():
            if isinstance(source, dict):
                yield name, "source", source
            elif name.startswith("data.test."):
                yield name, "set", source
    for key, kind, group in (
        ("data.metrics", "metric", data.get("metrics") if isinstance(data, dict) else None),
        ("callbacks", "callback", settings.get("callbacks")),
        ("logger", "logger", settings.get("logger")),
    ):
        if group is not None and (not isinstance(group, dict) or "_target_" in group):
            yield key, "named", group
        for name, node in (group if isinstance(group, dict) and "_target_" not in group else {}).items():
            yield f"{key}.{name}", kind, node
    if isinstance(model, dict):
        yield from _model_nodes(model)
    elif "model" in settings:
        yield "model", "pair", model


def _model_nodes(model: Values) -> Iterator[tuple[str, str, Any]]:
    yield "model", "pair", model
    if "tokenizer" in model:
        yield "model.tokenizer", "tokenizer", model["tokenizer"]
    for role in ("teacher", "student"):
        source = model.get(role)
        if source is None:
            continue
        key = f"model.{role}"
        yield key, "model", source
        if not isinstance(source, dict):
            continue
        if source.get("lora") is not None:
            yield f"{key}.lora", "lora", source["lora"]
        sft = source.get("sft")
        if sft is not None:
            yield f"{key}.sft", "sft", sft
        for kind in ("trainer", "optimizer", "scheduler", "checkpoint"):
            if isinstance(sft, dict) and kind in sft:
                yield f"{key}.sft.{kind}", kind, sft[kind]


WITHOUT_TARGET: dict[str, tuple[type[Node], str]] = {
    "lora": (nodes.LoRA, "settings, as {r: 16, alpha: 64}, or null"),
    "sft": (nodes.FineTuning, "settings of a fine-tuning, or null for none"),
    "pair": (nodes.Pair, "a tokenizer, a teacher and a student"),
}
"""The model of a node without a `_target_`, and a description of the node, by the kind of the node."""


def _check_node(key: str, kind: str, node: Any, reading: _Reading) -> None:
    if kind == "set":
        _check_set(key, node)
        return
    if kind == "named":
        raise InputError(
            f"{key}={shown(node)} must be nodes by name, such as +{key}.mine._target_=mine.Class"
        )
    if kind in WITHOUT_TARGET:
        model, what = WITHOUT_TARGET[kind]
        if not isinstance(node, dict):
            raise InputError(f"{key}={shown(node)} must be {what}")
        check_values(f"{key}.", model, node, reading.without)
        return
    if not isinstance(node, dict):
        remedy = f"name its class, +{key}._target_=mine.Class" if "." in key else f"choose {key}=OPTION"
        if kind == "logger" and node is None:
            remedy = f"leave it out with ~{key}"
        raise InputError(f"{key}={shown(node)} must be a node with a _target_; {remedy}")
    target = node.get("_target_")
    if not isinstance(target, str) or not target.strip():
        what = f"_target_={shown(target)}" if target is not None else "no _target_"
        other = f", or choose another option than {key}=none" if kind in ("divergence", "assistant") else ""
        raise InputError(f"{key}={shown(node)} has {what}; name its class there{other}")
    if kind in CALLED_LATER and node.get("_partial_") is not True:
        raise InputError(
            f"{key}._partial_={shown(node.get('_partial_', False))} must be true: {target} is called when "
            "the student is there"
        )
    known = nodes.BY_TARGET.get(kind, {}).get(target)
    given = {name: value for name, value in node.items() if name not in OF_HYDRA}
    if known is not None:
        check_values(f"{key}.", known, given, reading.without)
    else:
        _check_signature(key, kind, target, node, given, reading)


def _check_set(key: str, source: Any) -> None:
    if (
        source is not None
        and not (isinstance(source, str) and source.strip())
        and not isinstance(source, list)
    ):
        raise InputError(f"{key}={shown(source)} must be the path of a file, or null to leave it out")


def check_values(
    prefix: str,
    model: type[Node],
    values: Mapping[str, Any],
    may_lack: Callable[[str], bool] = lambda key: False,
) -> None:
    """Checks values against the model of their node.

    Args:
        prefix: the prefix of the keys, in messages.
        model: the model of the node.
        values: the values by key.
        may_lack: whether the value of a key may be missing.

    Raises:
        InputError: for the first value that does not fit.
    """
    for name in values:
        if not isinstance(name, str):
            raise InputError(f"{prefix}{name} must be a name, not the number {name}")
    try:
        model.model_validate(_plain(values))
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            name = str(mistake["loc"][0])
            key = f"{prefix}{name}"
            if mistake["type"] == "missing":
                if not may_lack(key):
                    raise InputError(f"{key} is missing; give it a value, {key}=VALUE") from error
            elif mistake["type"] == "extra_forbidden":
                raise InputError(_unknown(key, values[name], list(model.model_fields))) from error
            else:
                words = _words(mistake, model.model_fields[name].description)
                raise InputError(
                    f"{key}={shown(values[name])} must be {words}{_hint(mistake, values[name])}"
                ) from error


def check_arguments(
    prefix: str, model: type[Node], arguments: Mapping[str, Any], without: Sequence[str] = ()
) -> None:
    """Checks the arguments of a class or function against the model of its node, as `check` does.

    Args:
        prefix: the prefix of the keys, in messages.
        model: the model of the node.
        arguments: values by name; names that are no settings are ignored.
        without: the settings that are not checked.

    Raises:
        InputError: for the first argument that does not fit.
    """
    names = [name for name in model.model_fields if name in arguments and name not in without]
    check_values(prefix, model, {name: arguments[name] for name in names}, may_lack=lambda key: True)


def _plain(value: Any) -> Any:
    """Returns a value in which every mapping is a dictionary, and every sequence a list."""
    if isinstance(value, Mapping):
        return {name: _plain(child) for name, child in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(child) for child in value]
    return value


def _words(mistake: Any, description: str | None) -> str:
    """Returns what a value must be: the text of the mistake, the description, or the choices."""
    if mistake["type"] == "amid" and mistake["msg"]:
        return str(mistake["msg"])
    return description or str(mistake["ctx"]["expected"]).replace("'", "")


def _hint(mistake: Any, value: Any) -> str:
    """Returns what the user may have meant by text that looks like a number, or by a whole number."""
    if isinstance(value, str) and as_number(value) is not None:
        return "; it is text: leave out the quotes (a variable's number is ${oc.decode:${oc.env:NAME}})"
    out_of_range = mistake["type"].startswith(("greater_than", "less_than"))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 and not out_of_range:
        return f"; write {int(value)}"
    return ""


def _unknown(key: str, value: Any, known: list[str]) -> str:
    remedy = other_word(key)
    node, _, name = key.rpartition(".")
    if remedy is not None:
        return f"{key}={shown(value)}: {node} has no setting {name!r}; {remedy}"
    if not known:
        return f"{key}={shown(value)}: {node} has no settings; leave it out"
    return f"{key}={shown(value)}: {node} has no setting {name!r}{choose_one(name, known)}"


def _check_signature(
    key: str, kind: str, target: str, node: Values, given: Values, reading: _Reading
) -> None:
    """Checks the keys of a node against the signature of its `_target_`.

    Raises:
        InputError: if the `_target_` is not found or does not take the keys, or a value is no number.
    """
    found = _found(key, target)
    for name, value in given.items():
        if isinstance(value, float) and value != value:
            raise InputError(f"{key}.{name}=nan is no number; give it one")
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # of some built-in functions
        return
    kinds = {p.kind for p in parameters.values()}
    later = LATER.get(kind, ())
    own = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name, value in given.items():
            if name not in own:
                choices = [n for n in own if n not in later]
                raise InputError(_unknown(f"{key}.{name}", value, choices) + f" (arguments of {target})")
    _check_made(key, kind, target, found, given)
    called_later = kind in CALLED_LATER
    if (node.get("_partial_") is True and not called_later) or "_args_" in node:
        return
    lacking = [
        name
        for name in own
        if parameters[name].default is inspect.Parameter.empty
        and name not in given
        and (name not in later or kind in CALLED_WITH)
        and not reading.without(f"{key}.{name}")
    ]
    if lacking:
        is_function = not inspect.isclass(found)
        remedy = (
            f"a plain function needs _partial_: true, ++{key}._partial_=true"
            if is_function and kind in CALLED_WITH
            else f"give it, +{key}.{lacking[0]}=VALUE"
        )
        raise InputError(f"{key}._target_={target} needs {', '.join(lacking)}; {remedy}")


def _check_made(key: str, kind: str, target: str, found: Any, given: Values) -> None:
    """Checks that the object that a class or function makes fits the kind of its node.

    Raises:
        InputError: if it has the wrong base class, or does not take the arguments that it gets.
    """
    base = DERIVED_FROM.get(kind)
    if base is not None and inspect.isclass(found) and not issubclass(found, pkgutil.resolve_name(base)):
        raise InputError(f"{key}._target_={target} is not derived from {base}; name a class that is")
    names = CALLED_WITH.get(kind)
    if names is None:
        return
    function = found
    if inspect.isclass(found):
        called = next((vars(base)["__call__"] for base in found.__mro__ if "__call__" in vars(base)), None)
        if called is None:
            raise InputError(f"{key}._target_={target} has no __call__({', '.join(names)}); define it")
        function = functools.partial(called, None)
    elif not set(given) & set(names):
        function = functools.partial(found, **given)
    try:
        takes_names(function, names)
    except TypeError as error:
        raise InputError(f"{key}._target_={target} cannot be called as {kind}: {error}") from error


def _found(key: str, target: str) -> Callable[..., Any]:
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:  # the import of the user's module may raise anything
        reason = in_one_line(error)
        raise InputError(
            f"{key}._target_={shown(target)} cannot be found ({shortened(reason)}); write the module and the "
            "name, as mine.Class, of what is installed or stands in the working folder"
        ) from error
    if not callable(found):
        raise InputError(f"{key}._target_={shown(target)} is no class or function; name one")
    return found  # type: ignore[no-any-return]
