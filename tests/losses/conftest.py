from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are small: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors are made on the device of --device."""
    with torch.device(request.config.getoption("--device")):
        yield
