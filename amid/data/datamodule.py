"""Batches of instruction data in an order fixed by the seed, tokenised once."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from amid.config.data_files import RESPONSES
from amid.console import announce
from amid.data import notes
from amid.data.batches import Batches, endless
from amid.data.examples import Example
from amid.data.prompts import Encoder, SpecialTokens, Truncation, Turns
from amid.data.rows import Fields, checked
from amid.data.sets import Use
from amid.data.sources import Loaded, Source, TextSource, load_documents, loaded
from amid.data.templates import Template
from amid.data.tokens import NO_ROW, Mean, MicroBatch, Row, Sharing, Tokens, cut, pack, packed, pad
from amid.distributed.shares import shares
from amid.errors import InputError
from amid.files import digest_of, forget_parts, key_of, only_writer
from amid.settings import check_arguments, check_data, nodes
from amid.tensor_files import read_tensors, write_tensors

FORMAT = 4
"""Version of the files of token ids; another version makes another cache."""

_AS_TEXT = "special tokens are text"
"""Part of the key of a token cache if a row has a special token in its text."""


class InstructionData(L.LightningDataModule):
    """Training, validation and evaluation sets of instructions and responses.

    Args:
        tokenizer: the tokenizer of teacher and student.
        train: examples to train on: a file, a folder, a pattern of files, a data set of the hub, a list of
            such (`amid.data.sources.Source`), or the examples; null where nothing is trained.
        valid: examples to choose the checkpoint on.
        test: evaluation sets by name; one that is null is left out.
        template: the prompt around an example.
        metrics: functions by name that score answers to `test` (`amid.metrics.Metric`).
        valid_metric: the main metric, which also scores the answers to validation prompts; null for no
            such answers.
        pass_at: each k for which answers to `test` are scored by pass@k (`amid.metrics.pass_at_k`).
        fields: the names of `instruction`, `input` and `output` in the rows of files
            (`amid.data.sources.Fields`); null for these names.
        max_prompt_length: tokens of a prompt at most.
        max_length: tokens of prompt, response and EOS at most.
        truncation: what a longer prompt loses: "input", the end of its input (`amid.data.prompts.Encoder`);
            "right", its own end with the end of the template, as in published scripts.
        special_tokens: how to read a special token of the tokenizer that a row or a document contains: as
            "text", or as "tokens", the token itself (`amid.data.prompts.Encoder`).
        turns: the answers of a conversation that count: "all", or the "last" alone.
        batch_size: rows of an optimiser step.
        micro_batch_size: rows that go through the models at once; null for all of the step. Changes
            memory, speed and the random numbers of dropout, nothing else of the gradient.
        tokens_per_batch: a limit in tokens, padding included, in place of `micro_batch_size`. A step is cut
            into the fewest parts of similar lengths that keep the limit. A longer row goes alone.
        packing: whether the rows that go through the models at once are packed into one sequence without
            padding. No row attends to another. Changes memory, speed, rounding and the random numbers of
            dropout, nothing else. Models that do not keep packed rows apart are refused
            (`amid.models.counted_states.check_takes_packed`).
        sharing: what the devices of a run share out: "rows", which each cuts into its own micro-batches;
            "micro_batches", the same ones on any number of devices. Then gradients are summed in float64, and
            the random numbers of dropout follow from the micro-batch, so a run has the same numbers, to the
            bit, on any number of devices (`amid.training.gradient_sums`).
        mean: how the loss is averaged: "step", over all counted tokens of a step; "micro_batch", the mean of
            the micro-batches' means, as published scripts average over GPUs. With "micro_batch", batches
            and micro-batches hold random rows, not rows of similar lengths, and `micro_batch_size` is the
            number of rows of a GPU.
        valid_rows: validation rows used for the validation loss; null for all.
        valid_prompts: validation rows that the student also answers, for `valid_metric`.
        test_prompts: prompts of each evaluation set; null for all.
        plain_text: text for an additional language-model loss: a source as above with a `text` in
            each row, the path of a text file (`.txt`), or the documents; `responses` for the training data's
            own responses, after their prompts; null for none.
        plain_text_weight: the weight of the language-model loss, above 0.
        seed: fixes the order of the batches.
        cache_dir: the folder for tokenised data, with hashes of data, tokenizer and settings as file names.
            Examples that are read from files are on its disk too, without a name, as long as they are used.

    The attribute `tokenizer` is used to draw answers and saved with models. Its EOS is the token that ends a
    response in the template.

    Raises:
        InputError: for a source that cannot be used, a limit below what the template needs, a number
            that is not positive, a choice that there is not, a `valid_metric` that is none of `metrics`, or
            `tokens_per_batch` together with `micro_batch_size` or a mean of micro-batches.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train: Source | None,
        valid: Source | None,
        test: Mapping[str, Source | None],
        template: Template,
        metrics: Mapping[str, Callable[..., Any]] | None = None,
        valid_metric: str | None = None,
        pass_at: Sequence[int] = (),
        fields: Fields | None = None,
        max_prompt_length: int = 256,
        max_length: int = 512,
        truncation: Truncation = "input",
        special_tokens: SpecialTokens = "text",
        turns: Turns = "all",
        batch_size: int = 8,
        micro_batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        packing: bool = False,
        sharing: Sharing = "rows",
        mean: Mean = "step",
        valid_rows: int | None = None,
        valid_prompts: int = 64,
        test_prompts: int | None = None,
        plain_text: TextSource | None = None,
        plain_text_weight: float = 1.0,
        seed: int = 0,
        cache_dir: str = "outputs/cache",
    ) -> None:
        super().__init__()
        given = {**locals(), "metrics": dict(metrics or {}), "test": dict.fromkeys(test)}  # reads no rows
        check_arguments("data.", nodes.Data, given, without=("train", "valid", "plain_text", "cache_dir"))
        check_data(given)
        self.metrics, self.valid_metric = _main_first(given["metrics"], valid_metric), valid_metric
        self.pass_at = tuple(pass_at)
        self.encoder = Encoder(
            tokenizer, template, max_prompt_length, max_length, truncation, special_tokens, turns
        )
        self.tokenizer = _with_eos(tokenizer, template.end(tokenizer))
        self.batch_size, self.seed = batch_size, seed
        self.micro_batch_size, self.tokens_per_batch = micro_batch_size, tokens_per_batch
        self.packing, self.sharing, self.mean = packing, sharing, mean
        self.valid_prompts, self.cache_dir = valid_prompts, Path(cache_dir)
        self._train, self._valid, self._test, self._fields = train, valid, test, checked(fields)
        self._plain_text, self.plain_text_weight = plain_text, plain_text_weight
        self._valid_rows, self._test_prompts = valid_rows, test_prompts
        self._begins_at = (0, 0)

    @cached_property
    def train_examples(self) -> Sequence[Example]:
        """The training examples."""
        return self._train_loaded.examples

    @cached_property
    def valid_examples(self) -> Sequence[Example]:
        """The validation examples."""
        return self._valid_loaded.examples

    @cached_property
    def test_examples(self) -> dict[str, Sequence[Example]]:
        """The examples of each evaluation set."""
        return {name: found.examples for name, found in self._test_loaded.items()}

    @cached_property
    def _train_loaded(self) -> Loaded:
        return self._loaded(self._train, "train")

    @cached_property
    def _valid_loaded(self) -> Loaded:
        return self._loaded(self._valid, "valid", self._valid_rows)

    @cached_property
    def _test_loaded(self) -> dict[str, Loaded]:
        found = {
            name: self._loaded(source, "test", self._test_prompts)
            for name, source in self._test.items()
            if source is not None
        }
        for name, of in found.items():
            if any(example.is_text for example in of.examples):
                raise InputError(
                    f"data.test.{name} has plain text (rows with text alone), which has no prompt to answer; "
                    "give rows with questions, or null for no such set"
                )
        return found

    def _loaded(self, source: Source | None, use: Use, limit: int | None = None) -> Loaded:
        return loaded(source, limit, self._fields, use, self.cache_dir, self.encoder.template.thinking)

    @cached_property
    def train_tokens(self) -> Tokens:
        """The training examples as token ids."""
        return self._train_encoded[0]

    @cached_property
    def valid_tokens(self) -> Tokens:
        """The validation examples as token ids, numbered after the training examples."""
        return replace(self._valid_encoded[0], first=len(self.train_examples))

    def announce_cuts(self, splits: Sequence[str] = ("train", "valid", "test")) -> None:
        """Prints how many rows of `splits` are used in another form than their file has.

        Prompts and responses beyond the limits are cut; evaluation sets have only prompts. Special tokens in
        a row's text stay text. A chat template may write thoughts in another way. It prints nothing if no
        row is concerned.
        """
        found = {"train": self._train_loaded} if "train" in splits else {}
        found |= {"valid": self._valid_loaded} if "valid" in splits else {}
        if "test" in splits:
            found |= {f"test.{name}": of for name, of in self._test_loaded.items()}
        rows = {name: of.examples for name, of in found.items()}
        known = {"train": lambda: self._train_encoded, "valid": lambda: self._valid_encoded}
        cut = {name: known[name]() if name in known else self._encoded(of) for name, of in rows.items()}
        documents = self._documents if "train" in splits else ()
        for line in (
            *notes.rows(found),
            *notes.turns(self.encoder, rows),
            *notes.cuts(self.encoder, {name: of[1] for name, of in cut.items()}),
            *notes.special_tokens(self.encoder, rows, documents),
            *notes.thoughts(self.encoder, rows),
        ):
            announce(line)

    def announce_template(self) -> None:
        """Prints whether prompts are in the tokenizer's chat template, if that is a choice.

        It also prints the text that the template writes before an answer but not at the end of a prompt.
        """
        template, tokenizer = self.encoder.template, self.encoder.tokenizer
        choice = template.choice(tokenizer)
        if choice is not None:
            announce(choice)
        if heading := template.heading(tokenizer):
            announce(
                f"The chat template writes {heading!r} before an answer, but not at the end of a prompt: "
                "answers are trained on and drawn without it. Where a model needs it, give its tokenizer a "
                "template that writes it for add_generation_prompt"
            )

    def train_on(self, tokens: Tokens) -> None:
        """Replaces the training set by as many rows with other responses."""
        assert len(tokens) == len(self.train_examples), (len(tokens), len(self.train_examples))
        self.train_tokens = tokens

    def begin_at(self, epoch: int, batches: int) -> None:
        """Skips so many batches at the beginning of an epoch, for a run that resumes within the epoch."""
        self._begins_at = epoch, batches

    def train_dataloader(self) -> DataLoader[Row]:
        """Batches of training data; an item is the list of rows of one optimiser step."""
        return self._loader(self.train_tokens, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader[Row]:
        """Batches of validation data, the shortest rows first."""
        return self._loader(self.valid_tokens, self.micro_batch_size or self.batch_size, None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the rows where they are: a training step moves only its own micro-batches."""
        return batch

    def micro_batches(self, rows: Sequence[Row]) -> list[MicroBatch]:
        """The micro-batches of an optimiser step over `rows`, within the limits of the settings."""
        (parts,) = self.shares(rows, 1)
        return [self.micro_batch(part) for part in parts]

    def shares(self, rows: Sequence[Row], n: int) -> list[list[list[Row]]]:
        """Shares out an optimiser step over `rows` among `n` devices: the rows of each one's micro-batches.

        The shares have about equally many tokens. With `sharing=micro_batches`, or a mean of micro-batches,
        whole micro-batches are shared out: the same ones for any `n`.
        """
        limits = (self.micro_batch_size, self.tokens_per_batch, self.mean == "step", self.packing)
        if self.sharing == "micro_batches" or self.mean == "micro_batch":
            parts = cut(rows, *limits)
            sizes = [sum(len(row.ids) for row in part) for part in parts]
            return [[parts[number] for number in numbers] for numbers in shares(sizes, n)]
        of_devices = shares([len(row.ids) for row in rows], n)
        return [cut([rows[number] for number in numbers], *limits) for numbers in of_devices]

    @property
    def answer_group_size(self) -> int | None:
        """How many prompts are answered together in training; None where that depends on the devices."""
        if self.sharing == "rows":
            return None
        longest = self.encoder.max_length
        return self.micro_batch_size or max(1, (self.tokens_per_batch or longest) // longest)

    def micro_batch(self, rows: Sequence[Row]) -> MicroBatch:
        """The micro-batch of these rows, padded or packed."""
        if self.packing:
            return pack(rows)
        token = self.tokenizer.pad_token_id
        return pad(rows, self.tokenizer.eos_token_id if token is None else token)

    @cached_property
    def plain_tokens(self) -> Tokens | None:
        """The plain text in pieces of `max_length` tokens, all of them counted; None without plain text.

        With `plain_text=responses` it is the training set.
        """
        if self._plain_text is None:
            return None
        if self._plain_text == RESPONSES:
            return self.train_tokens
        encoder, documents = self.encoder, self._documents
        kind = tokenizer_fingerprint(encoder.tokenizer)
        made_from = ["plain text", digest_of(documents), encoder.max_length, kind]
        if encoder.special_tokens == "text" and any(map(encoder.special_in, documents)):
            made_from.append(_AS_TEXT)
        end = encoder.end_of_document
        pieces = ((ids, 0) for ids in packed(documents, encoder.texts, end, encoder.max_length))
        return Tokens.of_tensors(self._kept(made_from, lambda: Tokens.of(pieces, self.cache_dir).tensors))

    @cached_property
    def _documents(self) -> Sequence[str]:
        """The documents of plain text; empty if there is no plain text besides the training set."""
        source = self._plain_text
        return [] if source is None or source == RESPONSES else load_documents(source, self.cache_dir)

    def plain_batch(self, number: int) -> list[Row]:
        """The rows of the `number`th batch of plain text, of endlessly many: `batch_size` pieces.

        The batches go through all pieces again and again, each time in another order, fixed by the seed.
        """
        tokens = self.plain_tokens
        assert tokens is not None
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        chosen = [tokens[index] for index in endless(places, len(tokens), f"{self.seed}-plain")]
        return [row._replace(number=NO_ROW) for row in chosen]

    def _loader(self, tokens: Tokens, batch_size: int, seed: int | None) -> DataLoader[Row]:
        batches = Batches(tokens.lengths, batch_size, seed, self.mean == "step", self._begins_at)
        return DataLoader(tokens, batch_sampler=batches, collate_fn=list)

    @cached_property
    def _train_encoded(self) -> tuple[Tokens, Tensor]:
        return self._encoded(self.train_examples)

    @cached_property
    def _valid_encoded(self) -> tuple[Tokens, Tensor]:
        return self._encoded(self.valid_examples)

    def _encoded(self, examples: Sequence[Example]) -> tuple[Tokens, Tensor]:
        """Token ids of `examples`, and whether prompt and response of each were cut, [n, 2]."""
        encoder = self.encoder

        def encode() -> dict[str, Tensor]:
            cut = bytearray()

            def rows() -> Iterator[tuple[Sequence[int], int, Sequence[bool] | None]]:
                for row in map(encoder.example, examples):
                    cut.extend((row.prompt_cut, row.response_cut))
                    yield row.ids, row.n_prompt, row.counts

            tokens = Tokens.of_turns(rows(), self.cache_dir).tensors
            return {**tokens, "cut": torch.tensor(cut, dtype=torch.bool).reshape(-1, 2)}

        made_from = [
            digest_of(map(_read_by_models, examples)),
            encoder.template.made_from(self.tokenizer),
            [encoder.max_prompt_length, encoder.max_length, encoder.truncation],
            tokenizer_fingerprint(self.tokenizer),
        ]
        if encoder.special_tokens == "text" and any(
            encoder.special_in_prompt(e) or encoder.special_in(e.outputs[0]) for e in examples
        ):
            made_from.append(_AS_TEXT)
        if any(example.conversation for example in examples):
            made_from.append(encoder.turns)
        kept = self._kept(made_from, encode)
        return Tokens.of_tensors(kept), kept["cut"]

    def _kept(self, made_from: Sequence[object], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns the tensors that `make` makes, from the cache if they are stored there."""
        file = self.cache_dir / f"tokens-{key_of([FORMAT, *made_from])}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(file, "the tokenised data"):
            kept = read_tensors(file)
            if kept is None:
                forget_parts(file.parent, file.name)
                kept = make()
                write_tensors(file, kept)
        return kept


def _main_first(metrics: dict[str, Callable[..., Any]], main: str | None) -> dict[str, Callable[..., Any]]:
    """`metrics` with the one that is named `main` in front."""
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: name != main)}


def _read_by_models(example: Example) -> object:
    """Returns the parts of an example that models read."""
    if example.conversation is not None:
        conversation = example.conversation
        return [conversation.messages, conversation.given, conversation.tools, conversation.variables]
    texts = (example.instruction, example.input, example.outputs[0])
    return [*texts, "text"] if example.is_text else texts


def _with_eos(tokenizer: PreTrainedTokenizerBase, eos: str) -> PreTrainedTokenizerBase:
    """`tokenizer` with this EOS token; a copy where it has another."""
    if tokenizer.eos_token == eos:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = eos
    if tokenizer.pad_token is None:
        tokenizer.pad_token = eos
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides how `tokenizer` turns text into ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{text}{tokenizer.eos_token_id}".encode()).hexdigest()
