import json
import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("AMID_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """Answers of the Dolly test set."""
    file = SHARED / "data" / "dolly" / "valid.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there; set AMID_SHARED to the folder that holds data/")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    outputs = [row["output"] for row in rows]
    return [output if isinstance(output, str) else output[0] for output in outputs]
