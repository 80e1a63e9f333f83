"""Special tokens that are written in a row's text: they stay text, and markers come from the template."""

import json
import re
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""Around a special token in a row's text. Unicode keeps both for a program's own use, never for text."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that steer a model and that no text should become: EOS, ends of turns, and so on."""
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    named = {*tokenizer.all_special_tokens, *(getattr(tokenizer, "chat_control_tokens", None) or ())}
    return {token for token, special in added.items() if special or token in named}


def marks_in(tokenizer: PreTrainedTokenizerBase, text: str) -> set[str]:
    """The added tokens that mark parts of `text`, though the tokenizer does not call them special.

    DeepSeek's `<｜User｜>` is one. Words and white space that are added tokens are none.
    """
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return {t for t in added if t in text and t.strip() and not (t[0] + t[-1]).isalnum()}


_ESCAPED = re.compile(rf"\\u{ord(_BEGIN):x}(.+?)\\u{ord(_END):x}")
"""A marked token as Python's `repr` writes it."""


def with_marks(text: str) -> str:
    """The text of a chat template with the marks of `RowText.marked` as characters, also where the template
    writes a list or an object by `repr`, which escapes them."""
    return _ESCAPED.sub(rf"{_BEGIN}\1{_END}", text)


class RowText:
    """Turns text into token ids, where some of it comes from a row and the rest from a template.

    Text without a marked token has exactly the ids that the tokenizer itself gives it.

    Args:
        tokenizer: the tokenizer of the models.
        tokens: the tokens that stay text if a row has them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Collection[str]) -> None:
        self.tokenizer = tokenizer
        self._names = {f"{_BEGIN}{uuid.uuid4().hex}{_END}": token for token in tokens}
        one = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"
        self._token = re.compile(one)
        self._any = re.compile(f"{_BEGIN}({one}){_END}|({one})")

    def written(self, text: str) -> set[str]:
        """The tokens that stand in `text`."""
        return set(self._token.findall(text))

    def marked(self, text: str) -> str:
        """`text` of a row, with the tokens in it marked as text, for `ids`; a template may go around it."""
        return self._token.sub(f"{_BEGIN}\\g<0>{_END}", text)

    def ids(self, text: str) -> list[int]:
        """The token ids of `text`, in which marked tokens are text and others are themselves."""
        if _BEGIN not in text:
            return self._plain([text])[0]
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            return self._by_parts(text)
        encoded = self._renaming.encode(self._renamed(text), add_special_tokens=False)
        return [self._id(index) for index in encoded.ids]

    def _renamed(self, text: str) -> str:
        """`text` as `_renaming` reads it: marked tokens as they are, others by their names."""
        name_of = {token: name for name, token in self._names.items()}
        return self._any.sub(lambda found: found[1] or name_of[found[2]], text)

    def all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of each text, many at once."""
        return (
            self._plain(texts) if not any(_BEGIN in text for text in texts) else [self.ids(t) for t in texts]
        )

    def located(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """`ids` of `text`, and for each span of its characters the span of tokens that have some of them."""
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            ids = self.ids(text)
            return ids, [(self._shared(text[:a], ids), self._shared(text[:b], ids)) for a, b in spans]
        if _BEGIN not in text:
            found = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
            ids, offsets = found["input_ids"], found["offset_mapping"]
        else:
            places = sorted({place for span in spans for place in span} | {0, len(text)})
            parts = [self._renamed(text[a:b]) for a, b in pairwise(places)]
            moved = dict(zip(places, accumulate(map(len, parts), initial=0), strict=True))
            spans = [(moved[a], moved[b]) for a, b in spans]
            encoded = self._renaming.encode("".join(parts), add_special_tokens=False)
            ids, offsets = [self._id(index) for index in encoded.ids], encoded.offsets
        begins, ends = [begin for begin, _ in offsets], [end for _, end in offsets]
        return ids, [(bisect_right(ends, a), bisect_left(begins, b)) for a, b in spans]

    def _shared(self, beginning: str, ids: Sequence[int]) -> int:
        """How many of `ids` are also the first ids of `beginning`."""
        own = self.ids(beginning)
        pairs = enumerate(zip(own, ids, strict=False))
        return next((n for n, (a, b) in pairs if a != b), min(len(own), len(ids)))

    def _plain(self, texts: Sequence[str], **settings: bool) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **settings)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _by_parts(self, text: str) -> list[int]:
        """`ids` of a tokenizer that is written in Python, a marked token at a time."""
        parts = re.split(f"{_BEGIN}({self._token.pattern}){_END}", text)
        return [
            index
            for number, part in enumerate(parts)
            if part
            for index in self._plain([part], split_special_tokens=number % 2 == 1)[0]
        ]

    @cached_property
    def _renaming(self) -> Tokenizer:
        """The tokenizer, to which each token is known by a name that no text has, and not by its own."""
        spec: dict[str, Any] = json.loads(self.tokenizer.backend_tokenizer.to_str())
        known = set(self._names.values())
        flags = {token["content"]: token for token in spec["added_tokens"]}
        for token in spec["added_tokens"]:
            token["special"] = token["special"] or token["content"] in known
        model = spec["model"]
        if model["type"] == "Unigram":  # it would find a piece of this name in plain text
            pieces = enumerate(model["vocab"])
            model["vocab"] = [
                [f"{_END}{i}" if piece in known and i != model["unk_id"] else piece, score]
                for i, (piece, score) in pieces
            ]
        backend = Tokenizer.from_str(json.dumps(spec))
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # as text
        backend.add_tokens(
            [
                AddedToken(
                    name, normalized=False, lstrip=flags[token]["lstrip"], rstrip=flags[token]["rstrip"]
                )
                for name, token in self._names.items()
            ]
        )
        return backend

    def _id(self, index: int) -> int:
        """The tokenizer's own id of what `_renaming` calls `index`."""
        token = str(self._renaming.id_to_token(index))
        return int(self.tokenizer.backend_tokenizer.token_to_id(self._names.get(token, token)))
