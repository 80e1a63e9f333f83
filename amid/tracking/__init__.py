"""What is seen of a run while it goes: the status file, the screen, Weights & Biases."""
