"""Answers of models, and their scores."""
