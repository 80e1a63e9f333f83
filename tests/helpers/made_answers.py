"""Prompts with answers, for tests of scores."""

from amid.scoring.answers import Answer, Answered

REFERENCES = [["the cat sat on the mat"], ["a dog barked", "the dog barked loudly"], ["yes"]]


def of(references, texts, **known):
    return [
        Answered(f"say {i}", "", tuple(outputs), [Answer(text, **known)])
        for i, (outputs, text) in enumerate(zip(references, texts, strict=True))
    ]


def answered(*texts, **known):
    return of(REFERENCES, texts, **known)
