import pytest
from small_models import TOKENS, network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a small teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    network().save_pretrained(folder)
    TOKENS.save_pretrained(folder)
    return folder
