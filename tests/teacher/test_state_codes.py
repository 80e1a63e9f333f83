import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amid.losses import KL, Head, Objective
from amid.teacher.state_codes import LEVELS, bytes_of_position, decoded, encoded, kl


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 999), size=st.sampled_from([1e-20, 1e-3, 1.0, 1e4]))
def test_a_round_trip_is_off_by_half_a_scale_at_most(dtype, seed, size):
    generator = torch.Generator().manual_seed(seed)
    states = (size * torch.randn(5, 16, generator=generator)).to(dtype)
    tensors = encoded(states, "int8")
    again = decoded(tensors, dtype)
    assert again.dtype == dtype
    largest = states.float().abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(tensors["scale"], largest[:, 0] / LEVELS, rtol=1e-6, atol=0)
    bound = largest / LEVELS / 2 + torch.finfo(dtype).eps * largest  # eps: of the product, and of its dtype
    assert ((again.float() - states.float()).abs() <= bound).all()
    if dtype == torch.float32:
        assert float((again - states).abs().max()) > 0, "it is lossy"
        at = states.abs().argmax(dim=1, keepdim=True)
        torch.testing.assert_close(again.gather(1, at), states.gather(1, at), rtol=1e-6, atol=0)


def test_exact_states_stay_as_they_are():
    states = torch.randn(3, 4).bfloat16()
    assert decoded(encoded(states, "exact"), torch.bfloat16) is states


def test_a_state_of_zeros():
    tensors = encoded(torch.zeros(2, 4), "int8")
    assert torch.equal(decoded(tensors, torch.float32), torch.zeros(2, 4))


@pytest.mark.parametrize("code", ["exact", "int8"])
def test_the_bytes_of_a_position(code):
    tensors = encoded(torch.randn(10, 16).bfloat16(), code)
    assert sum(tensor.nbytes for tensor in tensors.values()) == 10 * bytes_of_position(
        code, 16, torch.bfloat16
    )
    assert bytes_of_position("int8", 576, torch.bfloat16) == 580
    assert bytes_of_position("exact", 576, torch.bfloat16) == 1152


def test_what_is_lost_is_the_divergence_of_the_logits():
    torch.manual_seed(0)
    head = Head(torch.randn(30, 16), torch.randn(30), softcap=5.0)
    exact = torch.randn(7, 16)
    lossy = decoded(encoded(exact, "int8"), torch.float32)
    theirs = Objective(KL())(
        student_logits=head.logits(lossy).double(), teacher_logits=head.logits(exact).double()
    )
    assert kl(head, exact, lossy) == pytest.approx(7 * float(theirs), rel=1e-4)
    assert kl(head, exact, exact) == pytest.approx(0, abs=1e-9)
