"""A pair of the hub, and settings that are changed, for the tests of cards and uploads."""

TEACHER, STUDENT = "HuggingFaceTB/SmolLM2-1.7B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"


def merged(before, now):
    """Nested mappings with the leaves of `now` in place of those of `before`."""
    both = dict(before)
    for key, value in now.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict) and "_target_" not in value
        both[key] = merged(both[key], value) if nested and key != "test" else value
    return both
