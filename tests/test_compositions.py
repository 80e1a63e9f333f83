"""The compositions that the tests cache equal Hydra's own compositions."""

import pytest
from compositions import compose_anew, compose_once
from omegaconf import OmegaConf

from amid.config.overrides import check_overrides
from amid.errors import InputError


@pytest.fixture
def both():
    """Composes a command line with what is kept, twice, and then by Hydra alone."""

    def composed(*overrides):
        kept = [check_overrides("train", list(overrides)) for _ in range(2)]
        compose_anew()
        try:
            return *kept, check_overrides("train", list(overrides))
        finally:
            compose_once()

    return composed


@pytest.mark.parametrize(
    "line",
    [
        "",
        "seed=2 assistant.alpha=-1 +data.test.mine=mine.jsonl ~data.test.open",
        "method=taid model=gpt2_xl_to_gpt2 data=dolly generation=greedy hydra.run.dir=x",
        "data=jsonl data.train=a.jsonl data.valid=b.jsonl data/metrics=summary text=student text.top_p=0.5",
    ],
)
def test_a_kept_composition_is_hydras_own(both, line):
    first, second, anew = both(*line.split())
    for kept in (first, second):
        assert OmegaConf.to_yaml(kept) == OmegaConf.to_yaml(anew)
        assert kept._get_flag("struct") == anew._get_flag("struct")
    first.seed = 9
    assert second.seed == anew.seed


def test_a_file_that_changes_is_composed_anew(both, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "conf" / "divergence" / "mine.yaml"
    file.parent.mkdir(parents=True)
    for alpha in ("0.2", "0.25"):
        file.write_text(f"defaults: [alpha, _self_]\nalpha: {alpha}\n")
        assert [cfg.divergence.alpha for cfg in both("divergence=mine")] == [float(alpha)] * 3
    file.unlink()
    with pytest.raises(InputError, match="divergence=mine is no option"):
        both("divergence=mine")
