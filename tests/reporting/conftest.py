import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, chromium

from amid.results import RunResult, Score

BASE = {
    "method": "amid",
    "model": "tiny",
    "data": "builtin",
    "divergence": "alpha_beta",
    "assistant": "alpha_mixture",
    "alpha": -5.0,
    "lam": 0.1,
    "order": "pr",
}
ALONE = {"assistant": "none", "alpha": None, "lam": None}


def run(
    rouge_l: Sequence[float] = (50.0,),
    self_bleu: Sequence[float] = (40.0,),
    seed: int = 1,
    sets: Sequence[str] = ("dolly",),
    **labels: Any,
) -> RunResult:
    """A run whose scores over the sampling seeds are the same on all sets."""
    if labels.get("method") in ("sft", "kd"):
        own = (
            {"divergence": "none", "order": None}
            if labels["method"] == "sft"
            else {"divergence": "kl", "order": "pq"}
        )
        labels = ALONE | own | labels
    scores = {"rouge_l": Score.over_seeds(rouge_l), "self_bleu": Score.over_seeds(self_bleu)}
    return RunResult(
        name=f"{labels.get('method', 'amid')}-{seed}",
        labels=BASE | labels,
        config_hash=f"hash{seed}",
        seed=seed,
        scores={name: scores | {"length": Score.over_seeds([12.0])} for name in sets},
        training={"steps": 400.0},
        timings={"train": 50.0, "evaluate": 10.0},
        versions={"torch": "2.13.0"},
    )


@pytest.fixture
def make_run() -> Callable[..., RunResult]:
    return run


@pytest.fixture
def sweep() -> list[RunResult]:
    """Three divergences × three α, two training seeds, two baselines, two sets."""
    runs = []
    for seed in (1, 2):
        runs.append(run((48.0, 48.4), (35.0, 35.4), seed, ("dolly", "vicuna"), method="sft"))
        runs.append(run((49.0, 49.4), (36.0, 36.4), seed, ("dolly", "vicuna"), method="kd"))
        for i, divergence in enumerate(("kl", "reverse_kl", "alpha_beta")):
            for alpha in (1.0, -5.0, -1.0):
                quality, likeness = 50 + i - alpha + 0.1 * seed, 40 + i - 2 * alpha
                runs.append(
                    run(
                        (quality, quality + 1),
                        (likeness, likeness + 1),
                        seed,
                        ("dolly", "vicuna"),
                        divergence=divergence,
                        alpha=alpha,
                    )
                )
    return runs


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    """A page of Chromium that must have nothing to complain about; skips the test where there is none."""
    if CHROMIUM is None:
        assert "AMID_REQUIRE_BROWSER" not in os.environ, "Chromium was installed and is not there"
        pytest.skip("no chromium on this machine: the report page is not tried in a browser")
    with chromium(tmp_path / "profile") as page:
        yield page
        assert page.problems == []
