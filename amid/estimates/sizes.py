"""Facts about models and data that estimates need: read, or else taken from `hub_sizes.yaml`."""

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from amid.config.data_files import HUB, HUB_PREFIX, parts_of, path_and_rows, place_of
from amid.data.examples import Example
from amid.data.sets import Use, rows_by_card
from amid.data.sources import loaded
from amid.experiment.plan import ROWS, Plan
from amid.models.hub import NOT_CACHED

SAMPLE = 256
"""The number of rows that are measured to estimate the lengths of all rows."""

HUB_FACTS: Mapping[str, Any] = yaml.safe_load(
    Path(__file__).with_name("hub_sizes.yaml").read_text(encoding="utf-8")
)
"""Public facts. Of `models`, by hub id, `architecture` and number of `weights`; of `data`, files with their
number of `rows` and mean `lengths`."""

T = TypeVar("T")

_SIZES, _ROWS = "the sizes of", "the numbers of rows of"
_MEASURED, _GUESSED = "the lengths (in tokens of SmolLM2) of", "the lengths (guessed) of"

_NOT_READ = (ValueError, OSError, InstantiationException)


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of the prompts and responses of a data source, within the limits on them."""

    prompt: float
    response: float
    """Mean tokens of a response, with its EOS."""

    @property
    def row(self) -> float:
        """Mean tokens of prompt and response together."""
        return self.prompt + self.response


@dataclass
class Notes:
    """What could not be read."""

    unknown: dict[str, str] = field(default_factory=dict)
    """The facts that stay unknown, with the reason."""
    taken: dict[str, list[str]] = field(default_factory=dict)
    """The facts that were taken from `hub_sizes.yaml`: the names of models and files, by what is taken."""

    def take(self, what: str, name: str) -> None:
        """Notes a fact that is taken from `hub_sizes.yaml`."""
        names = self.taken.setdefault(what, [])
        if name not in names:
            names.append(name)

    def add(self, others: "Notes") -> None:
        """Adds other notes."""
        self.unknown |= others.unknown
        for what, names in others.taken.items():
            for name in names:
                self.take(what, name)

    @property
    def assumed(self) -> str | None:
        """The facts that were taken from `hub_sizes.yaml`, in words; None for none."""
        parts = [
            f"{what} {', '.join(sorted(self.taken[what]))}"
            for what in (_SIZES, _ROWS, _MEASURED, _GUESSED)
            if what in self.taken
        ]
        return "; ".join(parts) or None


class Facts:
    """Sizes of models, numbers of rows and their lengths, each asked for once.

    Only tokenizers, the configurations of models, and data are read, no weights. Where one cannot be read,
    the public fact is taken, and noted in `notes`; what is not public either stays unknown, and is noted too.
    """

    def __init__(self) -> None:
        self.notes = Notes()
        self._found: dict[str, Any] = {}

    def skeleton(self, plan: Plan, role: str) -> PreTrainedModel | None:
        """The teacher or student of a run, without values; None for unknown."""
        source = plan.source(role)
        if role == "teacher":
            source = replace(source, lora=None)  # its adapters are merged

        def read() -> PreTrainedModel:
            tokenizer = self.tokenizer(plan) if source.path is None else None
            return source.skeleton(source.config(tokenizer))  # type: ignore[arg-type]

        def assume(fact: Mapping[str, Any]) -> PreTrainedModel:
            return source.skeleton(AutoConfig.for_model(**fact["architecture"]))

        return self._known(
            f"the size of {source.path or role}",
            ["model", str(source), plan.fingerprint("model.tokenizer")],
            read,
            assume,
            HUB_FACTS["models"].get(source.path),
            (_SIZES, str(source.path)),
        )

    def rows(self, source: Any, fields: Any, use: Use = "train") -> float:
        """The number of rows of a data source; NaN for unknown."""
        found = self._known(
            f"the number of rows of {_name(source)}",
            ["rows", source, fields, use],
            lambda: self._counted(source, use) or len(self._examples(source, fields, use)),
            lambda fact: _rows(source, fact["rows"]),
            _fact(source),
            (_ROWS, _name(source)),
        )
        return math.nan if found is None else found

    def lengths(self, plan: Plan, source: Any, use: Use = "train") -> Lengths:
        """The lengths of the rows of a data source, with the tokenizer and the limits of a plan; NaN for
        unknown."""
        data = plan.data_settings
        fact = _fact(source)

        def measure() -> Lengths:
            examples = self._examples(_first_rows(source), data.fields, use)
            encoder = plan.data(self.tokenizer(plan), without=ROWS).encoder
            chosen = examples[:: max(1, len(examples) // SAMPLE)][:SAMPLE]
            rows = [encoder.example(example) for example in chosen]
            counted = sum(row.counted for row in rows)
            return Lengths((sum(len(row.ids) for row in rows) - counted) / len(rows), counted / len(rows))

        def assume(fact: Mapping[str, Any]) -> Lengths:
            prompt = min(fact["lengths"]["prompt"], data.max_prompt_length)
            return Lengths(prompt, min(fact["lengths"]["response"], data.max_length - prompt))

        names = ("template", "max_length", "max_prompt_length", "fields", "turns")
        limits = [f"data.{name}" for name in names]
        found = self._known(
            f"the lengths of rows of {_name(source)}",
            ["lengths", source, use, plan.fingerprint("model.tokenizer", *limits)],
            measure,
            assume,
            fact,
            (_MEASURED if fact and fact["lengths"]["measured"] else _GUESSED, _name(source)),
        )
        return found or Lengths(math.nan, math.nan)

    def tokenizer(self, plan: Plan) -> PreTrainedTokenizerBase:
        """The tokenizer of a plan.

        Raises:
            ValueError: or another error of its source, if it cannot be loaded.
        """
        return self._once(["tokenizer", plan.fingerprint("model.tokenizer")], lambda: plan.tokenizer)

    def _counted(self, source: Any, use: Use) -> int | None:
        """Returns the rows that a source takes of a data set of the hub, by its card; None if it is no such
        source, or has a card that does not say it."""
        if not _is_hub_set(source):
            return None
        rows = self._once(
            ["card", path_and_rows(source)[0], use], lambda: rows_by_card(place_of(source), use)
        )
        return None if rows is None else _rows(source, rows)

    def _examples(self, source: Any, fields: Any, use: Use) -> Sequence[Example]:
        def load() -> Sequence[Example]:
            rows = instantiate(source) if isinstance(source, dict) else source
            return loaded(rows, None, fields, use, Path(tempfile.gettempdir())).examples

        return self._once(["examples", source, fields, use], load)

    def _known(
        self,
        what: str,
        key: object,
        read: Callable[[], T],
        assume: Callable[[Mapping[str, Any]], T],
        fact: Mapping[str, Any] | None,
        assumed: tuple[str, str],
    ) -> T | None:
        """Returns the value of `read`. If it fails, `assume` makes the value of the public fact, which is
        noted as `assumed`; without a public fact the value is None, and the reason is noted."""
        try:
            return self._once(key, read)
        except _NOT_READ as error:
            reason = reason_of(error)
        if fact is not None:
            self.notes.take(*assumed)
            return self._once(["assumed", key], lambda: assume(fact))
        self.notes.unknown[what] = reason
        return None

    def _once(self, key: object, find: Callable[[], T]) -> T:
        """Returns or raises what `find` does; calls it once for each key."""
        name = json.dumps(key, sort_keys=True, default=str)
        if name not in self._found:
            try:
                self._found[name] = find()
            except _NOT_READ as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, _NOT_READ):
            raise found
        answer: T = found
        return answer


def reason_of(error: BaseException) -> str:
    """Returns the reason why something was refused or could not be read, in one line."""
    text = " ".join(str(error.__cause__ if isinstance(error, InstantiationException) else error).split())
    silent = re.search(rf"\((.*{NOT_CACHED})\)", text)
    return silent.group(1) if silent else text


def _fact(source: Any) -> Mapping[str, Any] | None:
    """Returns the entry of a data source in `hub_sizes.yaml`; a limit on its rows plays no part."""
    wanted: list[Any]
    if isinstance(source, str):
        wanted = [source, path_and_rows(source)[0]]
    elif not isinstance(source, Mapping):
        return None
    else:
        idle = (("size", source.get("size")), ("hub", HUB))
        wanted = [dict(item for item in source.items() if item not in idle)]
    return next((fact for fact in HUB_FACTS["data"] if fact["source"] in wanted), None)


def _is_hub_set(source: Any) -> bool:
    return isinstance(source, str) and place_of(source).kind == "hub set"


def _first_rows(source: Any) -> Any:
    """Returns the source of the first `SAMPLE` rows of a data set of the hub; other sources as they are."""
    if not _is_hub_set(source):
        return source
    path, rows = path_and_rows(source)
    stop = rows.start + SAMPLE
    return f"{path}[{rows.start}:{stop if rows.stop is None else min(stop, rows.stop)}]"


def _rows(source: Any, rows: int) -> int:
    """Returns how many of a file's `rows` a source takes."""
    if isinstance(source, str):
        return len(range(rows)[path_and_rows(source)[1]])
    return min(rows, source.get("size") or rows)


def _name(source: Any) -> str:
    if paths := parts_of(source):
        return ", ".join(path_and_rows(path)[0].removeprefix(HUB_PREFIX) for path in paths)
    return f"{source['_target_']} ({source.get('split')})"
