"""Commands, as they are typed."""

import csv

from amid.cli.main import main


def run(*arguments):
    return main([str(a) for a in arguments])


def curve(directory):
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
