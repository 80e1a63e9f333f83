import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from amid.generation.drawing import Warp, draw


def warped(logits, warp):
    """A row of logits as transformers changes it."""
    scores = logits[None]
    if warp.temperature not in (0, 1):
        scores = TemperatureLogitsWarper(float(warp.temperature))(None, scores)
    if warp.top_k:
        scores = TopKLogitsWarper(warp.top_k)(None, scores)
    return TopPLogitsWarper(warp.top_p)(None, scores)[0] if warp.top_p < 1 else scores[0]


WARPS = [
    *(Warp(1.0, 1.0, 0), Warp(0.55, 1.0, 0), Warp(1.2, 0.9, 0), Warp(1.0, 0.3, 7)),
    *(Warp(0.0, 1.0, 0), Warp(0.4, 0.999, 20)),
]


def test_rows_with_unlike_warps_draw_as_each_alone():
    """Each row has the cumulated probabilities of transformers' own processors."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(len(WARPS), 50)
    rows = torch.arange(len(WARPS)).repeat_interleave(400)
    bits = torch.randint(0, 2**32, (len(rows),))
    tokens = draw(logits, WARPS, rows, bits)
    for i, warp in enumerate(WARPS):
        own = tokens[rows == i]
        alone = draw(logits[i : i + 1], [warp], torch.zeros(400, dtype=torch.long), bits[rows == i])
        assert torch.equal(own, alone)
        if warp.temperature == 0:
            assert set(own.tolist()) == {int(logits[i].argmax())}
            continue
        sums = warped(logits[i], warp).double().softmax(-1).cumsum(-1)
        wanted = torch.searchsorted(sums, bits[rows == i].double() / 2**32, right=True)
        assert (own == wanted).double().mean() > 0.999


@pytest.mark.parametrize("broken", [float("nan"), -float("inf"), float("inf")])
def test_a_row_without_a_token_to_draw_is_refused(broken):
    logits = torch.stack([torch.zeros(5), torch.full((5,), broken)])
    with pytest.raises(FloatingPointError, match="not finite, or no token is left"):
        draw(logits, WARPS[:1] * 2, torch.tensor([0]), torch.tensor([7]))
