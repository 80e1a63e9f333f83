"""Whether teacher and student have the same tokens, and how many logits they share."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amid.errors import InputError


def check_same_tokens(role: str, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> None:
    """Checks that a model was trained with the tokenizer that the data go through.

    Raises:
        InputError: if a token stands for different ids in `ours`, the run's, and `theirs`, the model's.
    """
    our_map, their_map = ours.get_vocab(), theirs.get_vocab()
    differing = [t for t in our_map.keys() | their_map.keys() if our_map.get(t) != their_map.get(t)]
    if differing:
        token = min(differing, key=lambda t: (our_map.get(t, their_map.get(t, 0)), t))
        raise InputError(
            f"vocabularies do not match: token {token!r} is {our_map.get(token)} in model.tokenizer and "
            f"{their_map.get(token)} in the {role}'s own tokenizer; choose models of one family"
        )


def shared_vocabulary(teacher_rows: int, student: PreTrainedModel) -> int | None:
    """Returns the number of first tokens that both models have logits for; None if they have equally many.

    Models of one family may pad their embeddings to different sizes; logits are then cut to the smaller.
    """
    sizes = {teacher_rows, output_rows(student)}
    return min(sizes) if len(sizes) > 1 else None


def output_rows(model: PreTrainedModel) -> int:
    """Returns the number of tokens that the model gives logits for."""
    head = model.get_output_embeddings()
    return int(head.weight.shape[0]) if head is not None else int(model.config.get_text_config().vocab_size)
