"""A saved student in other people's evaluation tools, where they are installed."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from small_models import network

from amid.data import Example, Template
from amid.data.builtin import TEMPLATE, TEMPLATE_WITH_INPUT, tokenizer
from amid.data.prompts import Encoder
from amid.generation.sampling import Sampling
from amid.metrics import exact_match
from amid.models.saving import save

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "other-tools.md"


def test_the_harness_counts_as_many_exact_matches_as_amid(tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="no lm-evaluation-harness: pip install '.[lm-eval]'")
    from lm_eval.tasks import TaskManager

    model, tok = network(seed=3, eos_bias=0.0, hidden_size=32), tokenizer()
    template = Template(TEMPLATE, TEMPLATE_WITH_INPUT)
    asked = [
        Example(f"say {word}", "", ("x",)) for word in ["one", "two", "three", "four", "five", "six", "seven"]
    ]
    prompts = [Encoder(tok, template, 60, 120).prompt(example) for example in asked]
    rows = Sampling(24, [1], temperature=0).answers(model, tok, prompts, seed=1)
    answers = [row[0].text for row in rows]
    assert len({*answers}) > 1
    references = [text if number % 3 else "another" for number, text in enumerate(answers)]
    save(model, tok, tmp_path / "student")
    (tmp_path / "mine.jsonl").write_text(
        "".join(
            json.dumps({"prompt": template.render(tok, one.instruction, ""), "reference": reference}) + "\n"
            for one, reference in zip(asked, references, strict=True)
        )
    )
    (block,) = (part for part in PAGE.read_text("utf-8").split("```yaml\n")[1:] if part.startswith("task:"))
    task = yaml.safe_load(block.partition("```")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'student'}",
        tasks=["mine"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    ours = exact_match(answers, [[reference] for reference in references])
    assert sum(ours) / len(ours) == pytest.approx(400 / 7)
    assert found["results"]["mine"]["exact_match,none"] == pytest.approx(4 / 7)
    assert torch.isfinite(model.lm_head.weight).all()
