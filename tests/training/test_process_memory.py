import gc
import sys
import weakref

import pytest
import torch

from amid.training.process_memory import forget_peak_memory, lasting_imports, peak_memory

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

    with pytest.raises(ImportError), lasting_imports():
        fail()
    assert during == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with lasting_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_what_the_first_block_leaves_is_passed_over_for_good():
    gc.unfreeze()
    try:
        with lasting_imports():
            pass
        frozen = gc.get_freeze_count()
        assert frozen > 10_000
        model = [torch.ones(3)]
        model.append(model)  # it refers to itself, as a trainer and its module do
        gone = weakref.ref(model[0])
        del model
        with lasting_imports():
            pass
        gc.collect()
        assert gone() is None
        assert gc.get_freeze_count() <= frozen
    finally:
        gc.unfreeze()
