"""Estimates of a run's steps, memory and disk space before it starts."""
