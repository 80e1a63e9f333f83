"""What a smaller teacher loses: a quantised one, and 8-bit states. KL to the exact teacher, and bytes.

    python benchmarks/small_teacher.py outputs/prepared/sft-*/checkpoints/best
    python benchmarks/small_teacher.py my/teacher --dtype bfloat16 --data data=dolly

KL is the mean over the response tokens of the validation data, in nats, from the exact teacher in the same
dtype to the smaller one; "same top" is the share of tokens with the same likeliest token. Bytes are those of
the teacher's weights, and of the states of one token in its cache. Seconds are of the teacher's forward pass
over all rows.
"""

import argparse
import time

import torch
from loss import device_name
from omegaconf import open_dict

from amid.config.compose import as_dict
from amid.config.overrides import check_overrides
from amid.data.tokens import collate, counted_positions
from amid.experiment.plan import Plan
from amid.models.quantization import weight_bytes
from amid.models.source import ModelSource
from amid.teacher.signals import LiveTeacher
from amid.teacher.state_codes import bytes_of_position, decoded, encoded

WAYS = [
    (None, "exact"),
    (None, "int8"),
    ("int8", "exact"),
    ("int4", "exact"),
    ("nf4", "exact"),
    ("nf4", "int8"),
]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", help="a folder or a hub id")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", nargs="*", default=[], help="overrides of amid train")
    args = parser.parse_args()
    cfg = check_overrides("train", args.data)
    with open_dict(cfg):
        cfg.pop("hydra")
        cfg.logger = {}
    data = Plan(as_dict(cfg)).data()
    tokens = data.valid_tokens
    batches = [
        {name: value.to(args.device) for name, value in batch.items()}
        for batch in collate([tokens[i] for i in range(len(tokens))], 0, tokens_per_batch=2048)
    ]
    exact: list[torch.Tensor] = []
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{device_name(torch.device(args.device))}; {args.dtype}, {sum(tokens.counted):,} tokens\n"
    )
    print(f"{'quantization':<14}{'states':<8}{'KL':>11}{'same top':>10}{'weights':>12}{'a token':>9}{'s':>7}")
    for quantization, code in WAYS:
        source = ModelSource(args.teacher, dtype=args.dtype, quantization=quantization)
        teacher = LiveTeacher(source.load(data.tokenizer))
        teacher.to(torch.device(args.device))
        assert teacher.head is not None
        nats, same, seconds = 0.0, 0, 0.0
        for i, batch in enumerate(batches):
            started = time.perf_counter()
            states = teacher.hidden(batch, counted_positions(batch))
            seconds += time.perf_counter() - started
            logits = teacher.head.logits(decoded(encoded(states, code), states.dtype)).double()
            if len(exact) == i:
                exact.append(logits.log_softmax(dim=-1))
            log_p, log_q = exact[i], logits.log_softmax(dim=-1)
            nats += float((log_p.exp() * (log_p - log_q)).sum())
            same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        n, each = sum(tokens.counted), bytes_of_position(code, states.shape[1], states.dtype)
        print(
            f"{quantization or 'none':<14}{code:<8}{nats / n:>11.2e}{same / n:>10.2%}"
            f"{weight_bytes(teacher.model) / 1e6:>9.2f} MB{each:>9}{seconds:>7.2f}"
        )


if __name__ == "__main__":
    main()
