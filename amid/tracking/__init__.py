"""The progress of a run as a user sees it: the status file, the screen, Weights & Biases."""
