"""The `amid` command: one file a command."""
