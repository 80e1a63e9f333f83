"""What a run takes, known before it starts: operations, memory, disk."""
