"""Draws the pictures of docs/concepts.md: `python docs/pictures.py` writes docs/images/*.svg.

The curves of quality over diversity come from the records of runs. In the other pictures, teacher p and
student q are two distributions over 60 tokens in a row, p with two modes, q with one.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amid.losses import AlphaMixture
from amid.reporting import build_table
from amid.reporting.front_figure import draw_fronts
from amid.reporting.fronts import fronts_of
from amid.reporting.runs import read_runs

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = (
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#e69f00",
    "#d55e00",
)  # Okabe and Ito's, safe for the colour-blind
STYLE = {"svg.hashsalt": "amid", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.6}

TOKENS = torch.arange(60, dtype=torch.float64)


def bells(*bells: tuple[float, float, float]) -> torch.Tensor:
    """Log-probabilities of a mixture of bells, each of (weight, centre, width)."""
    mass = sum(weight * torch.exp(-(((TOKENS - centre) / width) ** 2) / 2) for weight, centre, width in bells)
    return torch.log(mass / mass.sum())


LOG_P = bells((0.62, 16, 4), (0.38, 42, 4))
LOG_Q = bells((1.0, 24, 9))


def pair(axes: Axes) -> None:
    """Teacher and student, in the background."""
    axes.fill_between(TOKENS, LOG_P.exp(), color="#888888", alpha=0.25, lw=0, label="teacher p")
    axes.plot(TOKENS, LOG_Q.exp(), color="#222222", ls=":", lw=1.4, label="student q")
    axes.set_xlabel("token")
    axes.set_ylim(0, 0.085)


def assistants(lines: str, panels: dict[str, list[tuple[float, float]]]) -> Figure:
    """r in panels, each with a line for every (α, λ); `lines` is the letter that tells them apart."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
    for axes, (title, settings) in zip(both, panels.items(), strict=True):
        pair(axes)
        for colour, (alpha, lam) in zip(COLOURS, settings, strict=True):
            r = AlphaMixture(alpha, lam)(LOG_P, LOG_Q).exp()
            axes.plot(TOKENS, r, color=colour, label=f"{lines} = {alpha if lines == 'α' else lam:g}")
        axes.set_title(f"assistant r, {title}", fontsize=9)
    both[0].set_ylabel("probability")
    both[1].legend()
    return figure


def by_alpha() -> Figure:
    """r for several α at λ = 0.1 and at λ = ½."""
    alphas = (-5, -1, 0.5, 1, 3)
    return assistants("α", {f"λ = {lam:g}": [(alpha, lam) for alpha in alphas] for lam in (0.1, 0.5)})


def by_lam() -> Figure:
    """r for several λ at α = -5 and at α = 1."""
    lams = (0.1, 0.3, 0.5, 0.7, 0.9)
    return assistants("λ", {f"α = {alpha:g}": [(alpha, lam) for lam in lams] for alpha in (-5, 1)})


def weights() -> Figure:
    """The gradient weight w against log p - log q, λ = 0.1."""
    figure, axes = plt.subplots(figsize=(5.4, 3), layout="constrained")
    log_q = torch.zeros(201, dtype=torch.float64)
    gap = torch.linspace(-4, 4, 201, dtype=torch.float64)
    for colour, alpha in zip(COLOURS, (-5, -1, 0.5, 1, 3), strict=True):
        weight = AlphaMixture(alpha, 0.1).gradient_weight(gap, log_q)
        axes.plot(gap, weight, color=colour, label=f"α = {alpha:g}")
    axes.set_xlabel("log p - log q (nats)")
    axes.set_ylabel("w, λ = 0.1")
    axes.set_ylim(0, 1.03)
    axes.legend(loc="lower left")
    return figure


def curves() -> Figure:
    """Quality over diversity of the settings in docs/study/ladder_runs.zip, at several temperatures."""
    with read_runs([Path(__file__).parent / "study" / "ladder_runs.zip"]) as runs:
        table = build_table(list(runs.records.values()))
        (fronts,) = fronts_of(table, runs.records)
        figure, _ = draw_fronts(fronts)
        assert figure is not None
        return figure


PICTURES = {"r-by-alpha": by_alpha, "r-by-lambda": by_lam, "gradient-weight": weights, "fronts": curves}


def main(folder: Path) -> None:
    """Writes all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            figure = draw()
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
