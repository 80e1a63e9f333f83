"""The model card of a finished run, in the form of the Hugging Face hub."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from amid import __version__
from amid.config.data_files import path_and_rows
from amid.config.secrets import hide
from amid.measures import RUN, in_order, k_of, measure_of
from amid.metrics import FEW, Comparison, Metric, bleu, chrf
from amid.publishing.finished import FinishedRun
from amid.reporting.formats import markdown, markdown_code, markdown_line
from amid.results import BEST, quality_metrics
from amid.scoring.intervals import score_intervals

NO_NAME = "OWNER/NAME"
"""Stands in a card for the repository that is not chosen yet."""

PAGE = "report.html"
"""The report page beside the weights."""

HUB = "https://huggingface.co"

CITATION = """\
@inproceedings{shin2026amid,
  title     = {{AMiD}: Knowledge Distillation for {LLM}s with $\\alpha$-mixture Assistant Distribution},
  author    = {Shin, Donghyeok and Kim, Yeongmin and Jo, Suhyeon and Na, Byeonghu and Moon, Il-Chul},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2026},
  eprint    = {2510.15982},
  archivePrefix = {arXiv},
  url       = {https://arxiv.org/abs/2510.15982}
}"""

_METRICS_OF_HUB = {"rouge_l": "rouge", "rouge_1": "rouge", "rouge_2": "rouge"}
"""The hub's names of metrics that have another name there."""

_OF_SETS: Mapping[str, Metric] = {"amid.metrics.bleu": bleu, "amid.metrics.chrf": chrf}
"""Metrics of whole sets, by their places."""

Intervals = Mapping[str, Mapping[str, Comparison]]


def model_card(
    run: FinishedRun,
    repository: str = NO_NAME,
    licence: str | None = None,
    adapter: bool = False,
    page: bool = False,
) -> ModelCard:
    """Returns the card of a run's student: metadata for the hub, then Markdown.

    It holds what was distilled from what, the settings, the scores with 95% intervals, the command, and how
    to load and cite the model. It holds no path of this machine and no secret.

    Args:
        run: the run.
        repository: the `OWNER/NAME` that the student has on the hub.
        licence: the hub's id of a licence, such as apache-2.0; null for none yet.
        adapter: whether the card is of the adapters alone.
        page: whether the report page lies beside the card.

    Raises:
        Damaged: if the run's answers are not what the run wrote.
    """
    shown = _shown_scores(run)
    intervals = score_intervals(run.directory / "generations", shown, _metrics_of_sets(run, shown))
    name = repository.rpartition("/")[2] if repository != NO_NAME else f"{_method(run)}-student"
    parts = [
        f"# {markdown(name)}",
        _summary(run, adapter),
        "## Use",
        _use(run, repository, adapter),
        "## Training",
        _table(("Setting", "Value"), _training(run)),
        "## Scores",
        *_scores(run, shown, intervals),
        *([f"[{PAGE}]({PAGE}) shows the training curves and the answers. Download it to open it."] * page),
        "## Run it again",
        *_again(run),
        "## Licence",
        _licence(run, licence),
        "## Citation",
        "Please cite the method:" if _method(run) == "amid" else "Please cite amid:",
        f"```bibtex\n{CITATION}\n```",
    ]
    body = "\n\n".join(run.without_paths(part) for part in parts)
    data = _metadata(run, name, shown, intervals, licence, adapter)
    return ModelCard(hide(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _metadata(
    run: FinishedRun,
    name: str,
    shown: Mapping[str, Sequence[str]],
    intervals: Intervals,
    licence: str | None,
    adapter: bool,
) -> ModelCardData:
    base = run.hub_id("student")
    relation: Any = {} if base is None else {"base_model_relation": "adapter" if adapter else "finetune"}
    datasets = [found for source in run.sources("train", "plain_text") for found in run.datasets_of(source)]
    distilled = ["distillation", "knowledge-distillation"] if _distilled(run) else []
    results = _eval_results(run, shown, intervals)
    return ModelCardData(
        language=_languages(run),
        license=licence,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=base,
        datasets=list(dict.fromkeys(datasets)) or None,
        tags=[*distilled, "amid", "generated_from_amid"],
        model_name=name if results else None,
        eval_results=results or None,
        **relation,
    )


def _eval_results(
    run: FinishedRun, shown: Mapping[str, Sequence[str]], intervals: Intervals
) -> list[EvalResult]:
    found = []
    sources = dict(zip(_sets(run), run.sources("test"), strict=False))
    of_hub = {name: (run.datasets_of(sources.get(name)) or [name])[0] for name in shown}
    for dataset, metrics in shown.items():
        shared = list(of_hub.values()).count(of_hub[dataset]) > 1
        for metric in metrics:
            interval = _ends(intervals[dataset].get(metric))
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=of_hub[dataset],
                    dataset_name=dataset,
                    dataset_config=dataset if shared else None,
                    metric_type=_METRICS_OF_HUB.get(metric, metric),
                    metric_name=measure_of(metric).title,
                    metric_value=round(run.result.scores[dataset][metric].mean, 2),
                    metric_args=None if interval is None else {"interval_95": [*interval]},
                )
            )
    return found


def _shown_scores(run: FinishedRun) -> dict[str, list[str]]:
    """Returns the scores of each set that a card shows: of quality, pass@k and Self-BLEU."""
    quality = quality_metrics(run.result.scores.values())
    return {
        dataset: [
            name
            for name in in_order(scores)
            if (name in quality or name == "self_bleu" or k_of(name) is not None)
            and math.isfinite(scores[name].mean)
        ]
        for dataset, scores in run.result.scores.items()
    }


def _metrics_of_sets(run: FinishedRun, shown: Mapping[str, Sequence[str]]) -> dict[str, Metric]:
    """Returns the metrics of whole sets among the shown scores, as the run computed them."""
    found: dict[str, Metric] = {}
    for name, node in ((run.settings.get("data") or {}).get("metrics") or {}).items():
        metric = _OF_SETS.get(str(node.get("_target_"))) if isinstance(node, Mapping) else None
        if metric is not None and any(name in of_set for of_set in shown.values()):
            found[name] = partial(metric, **{key: node[key] for key in node if not key.startswith("_")})
    return found


def _sets(run: FinishedRun) -> list[str]:
    test = (run.settings.get("data") or {}).get("test")
    return [*test] if isinstance(test, dict) else []


def _ends(interval: Comparison | None) -> tuple[float, float] | None:
    """Returns the ends of an interval; None if the prompts are too few for one, or have the same score."""
    if interval is None or not math.isfinite(interval.low + interval.high) or interval.low == interval.high:
        return None
    return round(interval.low, 2), round(interval.high, 2)


def _distilled(run: FinishedRun) -> bool:
    """Whether a teacher had a part in the training."""
    return _method(run) not in ("sft", "start", "teacher") and bool(run.model("teacher"))


def _trained(run: FinishedRun) -> bool:
    return run.result.training.get("steps", 0.0) > 0


def _method(run: FinishedRun) -> str:
    return str(run.result.labels.get("method") or "student")


def _summary(run: FinishedRun, adapter: bool) -> str:
    begin, it = ("These are LoRA adapters of", "them") if adapter else ("This student began as", "it")
    if not _trained(run):
        did = f"scored {it} without further training"
    elif _distilled(run):
        did = f"distilled {it} from {_model_in_words(run, 'teacher')}"
    else:
        did = f"fine-tuned {it} without a teacher"
    by = f"amid {_version(run)}, a framework to distil language models,"
    return f"{begin} {_model_in_words(run, 'student')}. {by} {did}."


def _version(run: FinishedRun) -> str:
    """Returns the version of amid that trained the run."""
    return run.result.versions.get("amid-distill", __version__)


def _model_in_words(run: FinishedRun, role: str) -> str:
    """Returns what a model was before the training: its link or architecture, and what was done to it."""
    model = run.model(role)
    architecture = model.get("architecture")
    if (found := run.hub_id(role)) is not None:
        words = f"[{found}]({HUB}/{found})"
    elif isinstance(architecture, dict):
        size = [markdown(f"{key}={architecture.get(key)}") for key in ("hidden_size", "num_hidden_layers")]
        words = f"a {markdown(architecture.get('model_type'))} of random weights ({', '.join(size)})"
    else:
        words = "a model that is not on the hub"
    done = []
    if isinstance(layers := model.get("layers"), list):
        done.append(f"cut to {len(layers)} of its layers")
    if model.get("sft"):
        done.append("fine-tuned on the data first")
    if model.get("quantization"):
        done.append(f"quantised to {markdown(model['quantization'])}")
    return ", ".join([words, *done])


def _training(run: FinishedRun) -> Iterator[tuple[str, str]]:
    """Yields the settings of the training, as names and values in Markdown."""
    settings = run.settings
    data, trainer = settings.get("data") or {}, settings.get("trainer") or {}
    yield "Method", markdown_code(_method(run))
    if _distilled(run):
        yield "Teacher p", _model_in_words(run, "teacher")
    yield "Student q", _model_in_words(run, "student")
    if _distilled(run):
        yield from _loss(run)
    if isinstance(lora := run.model("student").get("lora"), dict):
        yield "LoRA", markdown_code(", ".join(f"{key}={value}" for key, value in lora.items()))
    yield "Training data", _source_in_words(run, data.get("train"))
    if (rows := run.result.training.get("train_rows")) is not None:
        yield RUN["train_rows"].title, f"{rows:,.0f}"
    if data.get("valid") is not None:
        yield "Validation data", _source_in_words(run, data["valid"])
    if data.get("plain_text") is not None:
        yield "Plain text", _source_in_words(run, data["plain_text"])
    for key in ("text", "optimizer", "scheduler"):
        if isinstance(settings.get(key), dict):
            yield key.capitalize(), markdown_code(_call(settings[key]))
    yield "Steps", f"{run.result.training.get('steps', 0):,.0f}, each of {data.get('batch_size')} rows"
    yield "Precision", markdown_code(trainer.get("precision"))
    yield "Seed", str(run.result.seed)
    versions = [f"{name} {version}" for name, version in run.result.versions.items()]
    yield "Versions", markdown(", ".join(versions))


def _loss(run: FinishedRun) -> Iterator[tuple[str, str]]:
    labels, objective = run.result.labels, run.settings.get("objective") or {}
    divergence, order = objective.get("divergence"), labels.get("order")
    if isinstance(divergence, dict):
        arguments = f"D({', '.join(str(order))})" if isinstance(order, str) else "D"
        yield "Divergence", f"{arguments} = {markdown_code(_call(divergence))}"
    else:
        yield "Objective", markdown_code(_call(objective))
    if labels.get("alpha") is None and labels.get("lam") is None:
        return
    yield "Assistant r", "α-mixture of p and q"
    yield "α", f"{labels.get('alpha')}"
    moving = isinstance(schedule := run.settings.get("schedule"), dict)
    over = f", moved by {markdown_code(_call(schedule))}" if moving and isinstance(schedule, dict) else ""
    yield "λ", f"{labels.get('lam')}{over}"


def _call(node: Mapping[str, Any]) -> str:
    """Returns the node of a class as a call: `AlphaBeta(alpha=0.2, beta=0.7)`."""
    name = str(node.get("_target_")).rpartition(".")[2]
    given = [
        f"{key}={_call(value) if isinstance(value, Mapping) and '_target_' in value else value}"
        for key, value in node.items()
        if not str(key).startswith("_")
    ]
    return f"{name}({', '.join(given)})"


def _source_in_words(run: FinishedRun, source: Any) -> str:
    if isinstance(source, Mapping):
        return markdown_code(_call(source))
    if isinstance(source, list):
        return ", ".join(_source_in_words(run, part) for part in source)
    if (datasets := run.datasets_of(source)) and isinstance(source, str):
        rest = source.partition(datasets[0])[2].lstrip("/")
        link = f"[{datasets[0]}]({HUB}/datasets/{datasets[0]})"
        return f"{link} {markdown_code(rest)}" if rest else link
    path = path_and_rows(str(source))[0]
    return markdown_code(f"{Path(path).name}{str(source).removeprefix(path)}")


def _scores(run: FinishedRun, shown: Mapping[str, Sequence[str]], intervals: Intervals) -> Iterator[str]:
    """Yields the table of scores, and how they and their intervals were computed."""
    names = in_order({name for of_set in shown.values() for name in of_set})
    if not names:
        yield "This run has no scores."
        return
    rows = []
    found = [_ends(intervals[dataset].get(name)) for dataset in shown for name in shown[dataset]]
    for dataset in shown:
        scores = run.result.scores[dataset]
        cells = [
            _cell(measure_of(name).number(scores[name].mean), _ends(intervals[dataset].get(name)))
            if name in shown[dataset]
            else "–"
            for name in names
        ]
        counted = {interval.prompts for interval in intervals[dataset].values()}
        rows.append((markdown(dataset), f"{max(counted):,}" if counted else "–", *cells))
    yield _table(("Set", "Prompts", *(measure_of(name).head for name in names)), rows)
    generation = run.settings.get("generation") or {}
    how = {key: generation.get(key) for key in ("temperature", "top_p", "max_new_tokens", "samples")}
    meanings = " ".join(f"{measure_of(name).title}: {measure_of(name).meaning}." for name in names)
    yield (
        f"Scores go from 0 to 100. {meanings} {_intervals_in_words(found)} Answers were drawn with "
        f"{markdown_code(', '.join(f'{key}={value}' for key, value in how.items()))} and "
        f"{len(generation.get('seeds') or [])} sampling seeds."
    )


def _intervals_in_words(found: Sequence[tuple[float, float] | None]) -> str:
    """Says what the brackets in the table of scores mean, given the interval of each score."""
    if not any(found):
        return "There are no intervals: they need more prompts, with different scores."
    lacking = " A score without brackets has too few prompts for an interval, or the same value for each."
    return (
        "In brackets: the 95% interval over the choice of prompts, by bootstrap, or exactly for fewer than "
        f"{FEW} prompts. It does not cover the training seed.{'' if all(found) else lacking}"
    )


def _cell(number: str, ends: tuple[float, float] | None) -> str:
    return number if ends is None else f"{number} ({ends[0]:.1f} to {ends[1]:.1f})"


def _again(run: FinishedRun) -> Iterator[str]:
    command = run.command
    if command is None:
        yield "The command of this run was not recorded."
        return
    yield f"```bash\npip install amid-distill=={_version(run)}\n{command}\n```"
    yield "A path of the author's machine is shortened to its last part."


def _licence(run: FinishedRun, licence: str | None) -> str:
    if licence is not None:
        return f"The licence of this model is {markdown(licence)}."
    models = [found for role in ("student", "teacher") if (found := run.hub_id(role)) is not None]
    datasets = [found for source in run.sources("train") for found in run.datasets_of(source)]
    terms = list(dict.fromkeys([*models, *datasets]))
    of = f" that the terms of {', '.join(terms)} allow" if terms else ""
    return f"No licence is chosen yet. Choose one{of}, and write it as `license:` at the top of this card."


def _use(run: FinishedRun, repository: str, adapter: bool) -> str:
    """Returns the code that loads the model and has it answer a prompt of the form it was trained on."""
    template = (run.settings.get("data") or {}).get("template") or {}
    question = "Name three primary colours."
    if _has_chat_template(run.directory / BEST):
        prompt = f"[{{'role': 'user', 'content': {question!r}}}]".replace("'", '"')
    else:
        system = f"{template['system']}\n\n" if template.get("system") else ""
        form = f"{system}{template.get('without_input') or '{instruction}'}"
        prompt = json.dumps(form.replace("{instruction}", question), ensure_ascii=False)
    tokenizer = run.hub_id("student")
    if adapter:
        load = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer, pipeline",
            "",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{repository}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")',
            'answer = pipeline("text-generation", model=model, tokenizer=tokenizer)',
        ]
    else:
        load = [
            "from transformers import pipeline",
            "",
            f'answer = pipeline("text-generation", model="{repository}")',
        ]
    asked = f"print(answer({prompt}, max_new_tokens=256, return_full_text=False))"
    return "\n".join(["```python", *load, asked, "```"])


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    file = folder / "tokenizer_config.json"
    return file.exists() and "chat_template" in json.loads(file.read_text(encoding="utf-8"))


def _languages(run: FinishedRun) -> list[str] | None:
    """Returns the languages of translation data; None for data that do not say theirs."""
    found = [
        source[key]
        for source in run.sources("train")
        if isinstance(source, Mapping)
        for key in ("source", "target")
        if key in source
    ]
    return [str(language) for language in found] or None


def _table(heads: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    lines = [markdown_line(heads), markdown_line(["---"] * len(heads))]
    return "\n".join([*lines, *map(markdown_line, rows)])
