"""What amid measures: each name once, with how it is written, which way is better, and where it is shown.

A new measure is one row of `MEASURES`: the progress line, `amid status`, tables, figures, the report and
Weights & Biases read its title, unit, direction and digits here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"] | None
"""Which values are the better ones; None where neither are."""

Kind = Literal["quality", "answers", "training", "validation", "run"]
"""What a measure is taken of.

- `quality`: answers to an evaluation set, or to validation prompts, against their references.
- `answers`: the answers of a run to an evaluation set, by themselves.
- `training`: an optimiser step, or the steps since the last record.
- `validation`: what the student predicts on the responses of the validation data.
- `run`: a whole run.
"""

Place = Literal["progress", "status", "table", "section", "page", "wandb", "workspace", "checkpoint"]
"""Where a measure is shown, or used.

- `progress`: the progress bar and the progress lines.
- `status`: `amid status`.
- `table`: a column of the report's main table, and an axis of its figures.
- `section`: a column of a further table of the report; a validation measure also has columns in table.csv.
- `page`: a column of report.html.
- `wandb`: a column of Weights & Biases: the best value, or the last one where no value is the better one.
- `workspace`: a panel of the Weights & Biases workspace of a sweep.
- `checkpoint`: may choose the checkpoint that a run keeps.
"""

Taken = Literal["always", "with a teacher"]
"""At which validations a measure is taken."""


@dataclass(frozen=True)
class Measure:
    """A measured number: what it is, and how and where it is written."""

    kind: Kind
    name: str
    """As files call it; no two measures of a kind share a name."""
    title: str
    """As tables and figures write it."""
    unit: str
    """Of the number as it is written; a score without a unit goes from 0 to 100."""
    better: Better
    digits: int
    """Decimal places in text. The main table has the same for all of its columns."""
    shown: tuple[Place, ...]
    meaning: str
    """What it is, a phrase that reports write behind the title."""
    taken: Taken = "always"
    computed_by: str = ""
    """Of a validation measure that neither a loss nor another measure gives: its function, a
    `TokenMeasure` of amid.training.validation."""

    @property
    def scale(self) -> float:
        """The number that is kept, times this, is the one that is written."""
        return _SCALES.get(self.unit, 1.0)

    @property
    def head(self) -> str:
        """The head of a column: title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def logged(self) -> str:
        """The name in metrics.csv and in Weights & Biases, of what is measured while a run trains."""
        return f"{'train' if self.kind == 'training' else 'valid'}/{self.name}"

    def number(self, value: float) -> str:
        """A value as text, without its unit."""
        return f"{self.scale * value:z,.{self.digits}f}"  # z: no minus before a rounded zero


_SCALES = {"%": 100.0, "ms": 1e3, "GB": 1e-9}
"""By unit. Files keep shares from 0 to 1, seconds and bytes."""

_DIVERSITY: tuple[Place, ...] = ("table", "page", "wandb")
_TEXT: tuple[Place, ...] = ("section", "wandb")
_QUALITY: tuple[Place, ...] = ("progress", "status", *_DIVERSITY)
_NATS = "nats/token"

# fmt: off
MEASURES = (
    # kind, name, title, unit, better, digits, shown,
    #       meaning
    Measure("quality", "rouge_l", "ROUGE-L", "", "higher", 1, _QUALITY,
            "F1 of the longest common subsequence of words, with the most similar reference"),
    Measure("quality", "rouge_1", "ROUGE-1", "", "higher", 1, _QUALITY,
            "F1 of the words, with the most similar reference"),
    Measure("quality", "rouge_2", "ROUGE-2", "", "higher", 1, _QUALITY,
            "F1 of the pairs of words, with the most similar reference"),
    Measure("quality", "bleu", "BLEU", "", "higher", 1, _QUALITY,
            "BLEU of the whole set, by sacrebleu"),
    Measure("quality", "chrf", "chrF", "", "higher", 1, _QUALITY,
            "chrF of the whole set, by sacrebleu"),
    Measure("quality", "exact_answer", "Exact answer", "", "higher", 1, _QUALITY,
            "share of the answers that end in the number of the reference"),
    Measure("quality", "exact_match", "Exact match", "", "higher", 1, _QUALITY,
            "share of the answers that equal a reference"),
    Measure("answers", "self_bleu", "Self-BLEU", "", "lower", 1, _DIVERSITY,
            "similarity of the answers to one prompt"),
    Measure("answers", "corpus_self_bleu", "Self-BLEU, set", "", "lower", 1, _DIVERSITY,
            "similarity of all answers to a set"),
    Measure("answers", "distinct_1", "Distinct-1", "", "higher", 1, ("page",),
            "number of different words, as a share of all words"),
    Measure("answers", "distinct_2", "Distinct-2", "", "higher", 1, ("page",),
            "number of different pairs of words, as a share of all pairs"),
    Measure("answers", "repetition", "Repetition", "", "lower", 1, ("page", "wandb"),
            "share of the sequences of four words that occurred earlier in the same answer"),
    Measure("answers", "overlong", "Overlong", "", "lower", 1, ("page", "wandb"),
            "share of the answers with more than twice the words of the longest reference"),
    Measure("answers", "unparsable", "Unparsable", "", "lower", 1, ("page",),
            "share of the answers that end in no number, where the references end in one"),
    Measure("answers", "eos_share", "Ended", "", "higher", 1, ("page",),
            "share of the answers that end with an end-of-sequence token"),
    Measure("answers", "length", "Length", "tokens", None, 1, ("page",),
            "number of tokens of an answer"),
    Measure("answers", "log_prob", "Log p", "nats", None, 1, ("page",),
            "mean log-probability that the model gives to a token of its answers"),
    Measure("training", "loss", "Training loss", "", "lower", 3, ("wandb", "workspace"),
            "loss of an optimiser step"),
    Measure("training", "gradient_norm", "Gradient norm", "", None, 3, ("wandb", "workspace"),
            "norm of the gradient before clipping"),
    Measure("training", "lr", "Learning rate", "", None, 6, ("wandb",),
            "learning rate of the step"),
    Measure("training", "alpha", "α", "", None, 3, ("wandb",),
            "α of the assistant at the step"),
    Measure("training", "lam", "λ", "", None, 3, ("wandb", "workspace"),
            "λ of the assistant at the step"),
    Measure("training", "kl_pq", "KL(p ‖ q)", _NATS, "lower", 3, (),
            "KL divergence from the teacher to the student, on the step's text"),
    Measure("training", "same_top", "Same top token", "%", "higher", 1, (),
            "share of the step's tokens at which teacher and student find the same token likeliest"),
    Measure("training", "entropy_p", "Entropy of p", _NATS, None, 3, (),
            "entropy of the teacher"),
    Measure("training", "entropy_q", "Entropy of q", _NATS, None, 3, (),
            "entropy of the student"),
    Measure("training", "entropy_r", "Entropy of r", _NATS, None, 3, (),
            "entropy of the assistant"),
    Measure("training", "gradient_weight", "Gradient weight", "", None, 3, (),
            "mean over the student of the gradient weight of the α-mixture"),
    Measure("training", "plain_text_loss", "Plain-text loss", _NATS, "lower", 3, (),
            "cross-entropy on `data.plain_text`"),
    Measure("training", "padding", "Padding", "%", "lower", 1, (),
            "share of padding among the tokens of the step"),
    Measure("training", "student_text", "Student text", "%", None, 1, (),
            "share of the rows that the student wrote"),
    Measure("training", "student_text_tokens", "Student-text length", "tokens", None, 1, (),
            "mean number of counted tokens in a row that the student wrote"),
    Measure("training", "text_threshold", "Text threshold", "", None, 3, (),
            "threshold φ of adaptive student text"),
    Measure("training", "single_step", "Single-step loss", _NATS, "lower", 3, (),
            "KL(q ‖ p) at each token, a part of the loss of MiniLLM"),
    Measure("training", "to_go", "Return", "", "higher", 3, (),
            "mean reward from a token to the end of the answer, in the loss of MiniLLM"),
    Measure("training", "importance", "Importance weight", "", None, 3, (),
            "mean importance weight of a token in the loss of MiniLLM"),
    Measure("training", "clipped", "Clipped", "%", None, 1, (),
            "share of the tokens with a clipped importance weight in the loss of MiniLLM"),
    Measure("validation", "loss", "Validation loss", "", "lower", 3, ("wandb", "workspace", "checkpoint"),
            "the objective, on the responses of the data"),
    Measure("validation", "cross_entropy", "Cross-entropy", _NATS, "lower", 3, (*_TEXT, "checkpoint"),
            "mean negative log-probability of a token of the references"),
    Measure("validation", "perplexity", "Perplexity", "", "lower", 2, _TEXT,
            "exponential of the cross-entropy"),
    Measure("validation", "kl_pq", "KL(p ‖ q)", _NATS, "lower", 3, _TEXT,
            "KL divergence from the teacher to the student", "with a teacher"),
    Measure("validation", "same_top", "Same top token", "%", "higher", 1, _TEXT,
            "share of the tokens at which teacher and student find the same token likeliest",
            "with a teacher"),
    Measure("validation", "overlap_10", "Overlap@10", "%", "higher", 1, _TEXT,
            "share of the teacher's ten likeliest tokens that are among the student's ten likeliest",
            "with a teacher", "amid.training.overlap.overlap"),
    Measure("run", "steps", "Steps", "", None, 0, ("status",),
            "optimiser steps that were done"),
    Measure("run", "diverged_step", "Diverged at", "", None, 0, (),
            "step that ended a run which diverged"),
    Measure("run", "train_rows", "Training rows", "rows", None, 0, (),
            "rows of the training data that have a response"),
    Measure("run", "response_tokens", "Response tokens", "tokens", None, 0, (),
            "counted tokens of all steps"),
    Measure("run", "step_seconds", "Step", "ms", "lower", 1, ("section",),
            "mean time of an optimiser step, without the first step of each process"),
    Measure("run", "response_tokens_per_second", "Throughput", "tokens/s", "higher", 0, ("section",),
            "response tokens divided by the time of the whole training"),
    Measure("run", "peak_memory", "Memory", "GB", "lower", 2, ("section",),
            "peak memory of the GPU, or of the process where there is no GPU"),
    Measure("run", "teacher_states_bytes", "Lossy states", "bytes", "lower", 0, (),
            "bytes of a token in a lossy teacher cache"),
    Measure("run", "teacher_states_kl", "Lossy states, KL", "nats", "lower", 6, (),
            "mean KL divergence a token from the teacher's exact states to the states of a lossy cache"),
    Measure("run", "load", "Loading", "s", "lower", 1, (),
            "time to load data and models"),
    Measure("run", "prepare", "Preparation", "s", "lower", 1, (),
            "time of fine-tunings and of the training text"),
    Measure("run", "teacher", "Teacher", "s", "lower", 1, (),
            "time to load the teacher or fill its cache"),
    Measure("run", "train", "Training", "s", "lower", 1, (),
            "time of the training with its validations"),
    Measure("run", "evaluate", "Evaluation", "s", "lower", 1, (),
            "time to answer and score the evaluation sets"),
)
# fmt: on
"""All measures, each kind in the order of reports."""


def of_kind(*kinds: Kind) -> dict[str, Measure]:
    """The measures of these kinds by name, in the order of reports."""
    return {measure.name: measure for measure in MEASURES if measure.kind in kinds}


SCORES = of_kind("quality", "answers")
OF_ANSWERS = of_kind("answers")
VALIDATION = of_kind("validation")
TRAINING = of_kind("training")
RUN = of_kind("run")

RIGHT_OR_WRONG = ("exact_answer", "exact_match")
"""The metrics that say whether an answer is right. pass@k counts by the first of them that a set has."""


def pass_name(k: int) -> str:
    """Returns the name of pass@k in files."""
    return f"pass_{k}"


def k_of(name: str) -> int | None:
    """Returns the k of the score pass@k; None for another score."""
    k = name.removeprefix("pass_")
    return int(k) if k.isdecimal() and int(k) > 0 and name == pass_name(int(k)) else None


def ks_of(names: Iterable[str]) -> list[int]:
    """Returns each k of the scores pass@k among `names`, from the smallest."""
    return sorted({k for name in names if (k := k_of(name)) is not None})


def measure_of(name: str) -> Measure:
    """The score of that name; a metric of the user's own is called as it is named, and higher is better."""
    if name in SCORES:
        return SCORES[name]
    title, shown, meaning = name, _QUALITY, "a metric of your own"
    if (k := k_of(name)) is not None:
        title, shown, meaning = f"pass@{k}", ("page",), f"chance that one of {k} answers at least is right"
    return Measure("quality", name, title, "", "higher", 1, shown, meaning)


def in_order(names: Iterable[str]) -> list[str]:
    """Returns names of scores in the order of reports; pass@k and metrics of the user's own come last."""
    order = list(SCORES)
    return sorted(
        names, key=lambda name: (order.index(name) if name in SCORES else len(order), k_of(name) or 0)
    )
