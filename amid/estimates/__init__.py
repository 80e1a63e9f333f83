"""What a run takes, known before it starts: steps, memory, disk."""
