import gc
import sys

import pytest
import torch

from amid.training.process_memory import forget_peak_memory, peak_memory, without_collection

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be forgotten elsewhere")
def test_the_peak_is_that_since_it_was_forgotten():
    forget_peak_memory(CPU)
    start = peak_memory(CPU)
    torch.ones(100 * 2**18).sum()  # 100 MiB
    high = peak_memory(CPU)
    assert high - start > 90 * 2**20
    forget_peak_memory(CPU)
    assert peak_memory(CPU) < high - 50 * 2**20


def test_unused_objects_are_looked_for_again_after_an_error_too():
    assert gc.isenabled()
    during = []

    def fail():
        during.append(gc.isenabled())
        raise ImportError

    with pytest.raises(ImportError), without_collection():
        fail()
    assert during == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
