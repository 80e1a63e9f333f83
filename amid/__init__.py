"""amid: distil large language models into small ones with the α-mixture assistant (arXiv 2510.15982)."""

__version__ = "0.2.0"
