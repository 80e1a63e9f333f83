"""OPUS-100: pairs of sentences in English and one of 99 other languages, from the Hugging Face hub."""

from dataclasses import replace

from amid.config.data_files import HUB
from amid.data.examples import Example
from amid.data.sources import load_examples
from amid.errors import InputError
from amid.settings import check_arguments, nodes

_NAMES = (
    "af Afrikaans, ar Arabic, az Azerbaijani, be Belarusian, bg Bulgarian, bn Bengali, bs Bosnian, "
    "ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek, en English, eo Esperanto, es Spanish, "
    "et Estonian, eu Basque, fa Persian, fi Finnish, fr French, ga Irish, gl Galician, gu Gujarati, "
    "ha Hausa, he Hebrew, hi Hindi, hr Croatian, hu Hungarian, hy Armenian, id Indonesian, is Icelandic, "
    "it Italian, ja Japanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean, ku Kurdish, "
    "lt Lithuanian, lv Latvian, mk Macedonian, ml Malayalam, mr Marathi, ms Malay, mt Maltese, my Burmese, "
    "ne Nepali, nl Dutch, no Norwegian, pa Punjabi, pl Polish, pt Portuguese, ro Romanian, ru Russian, "
    "si Sinhala, sk Slovak, sl Slovenian, sq Albanian, sr Serbian, sv Swedish, ta Tamil, te Telugu, "
    "th Thai, tr Turkish, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, xh Xhosa, yi Yiddish, "
    "zh Chinese, zu Zulu"
)
LANGUAGES = dict(pair.split(" ", 1) for pair in _NAMES.split(", "))
"""How instructions call a language; one that is not here is called by its code."""


def corpus(
    split: str, source: str = "de", target: str = "en", size: int | None = None, hub: str = HUB
) -> list[Example]:
    """Returns a split of OPUS-100, as instructions to translate.

    Args:
        split: "train" (up to a million pairs), "validation" or "test" (up to 2,000 each), as published.
        source: code of the language to translate from.
        target: code of the language to translate to; one of the two is `en`.
        size: how many pairs to take, from the first on; null for all.
        hub: where `Helsinki-NLP/opus-100` is: the hub, or a folder with a copy of it.

    Returns:
        Examples. The input is the sentence to translate, and the output is its translation.

    Raises:
        InputError: for another split, a pair without `en`, or a file that cannot be loaded (`load_examples`).

    Reference: Zhang et al. 2020, "Improving Massively Multilingual Neural Machine Translation and Zero-Shot
    Translation".
    """
    check_arguments("", nodes.OpusCorpus, locals())
    if source == target or "en" not in (source, target):
        raise InputError(f"source={source!r} and target={target!r} must be 'en' and another language's code")
    pair = "-".join(sorted((source, target)))
    instruction = f"Translate this from {LANGUAGES.get(source, source)} to {LANGUAGES.get(target, target)}."
    fields = {"instruction": f"translation.{source}", "output": f"translation.{target}"}
    file = f"{hub}/Helsinki-NLP/opus-100/{pair}/{split}-00000-of-00001.parquet"
    return [
        replace(example, instruction=instruction, input=example.instruction)
        for example in load_examples(file, size, fields)
    ]
