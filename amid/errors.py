"""The error that stands for a mistake in the user's input."""


class InputError(ValueError):
    """A mistake in the user's input: the message names the argument, its value and the remedy."""
