"""Configurations: how they are composed, named, checked for secrets and read back."""
