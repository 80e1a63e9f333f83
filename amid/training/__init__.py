"""The training of a student: the Lightning module, its loss, its checkpoints and its limits."""
