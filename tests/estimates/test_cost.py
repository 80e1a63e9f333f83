import pytest
from hydra.utils import instantiate

from amid.config.compose import as_dict
from amid.config.sweeps import read_sweep
from amid.data import InstructionData
from amid.data.builtin import tokenizer
from amid.estimates.cost import ANSWER_BYTES, TEXT_BYTES, Estimator
from amid.experiment.plan import Plan
from amid.models.source import ModelSource
from amid.scoring.answers import Answer, Answered, write_answers

SIZES = ["data.train.size=256", "data.valid.size=64", "data.test.open.size=48", "data.test.closed.size=16"]
STEPS = ["trainer.limit_train_batches=null", "trainer.max_epochs=4"]  # 4 epochs of 8 steps of 32 rows
LENGTHS = ["generation.max_new_tokens=3", "generation.samples=2", "generation.seeds=[1,2,3]"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def configured(*overrides):
    _, cfg = next(read_sweep("main", list(overrides)).configs())
    cfg.logger = {}
    return as_dict(cfg)


def planned(*overrides):
    return Plan(configured(*overrides))


class Hand:
    """What a calculation by hand needs of a configuration of the built-in corpus: weights and mean tokens."""

    def __init__(self, cfg):
        models = {r: instantiate({**cfg["model"][r], "sft": None}) for r in ("teacher", "student")}
        loaded = {role: source.load(tokenizer()) for role, source in models.items()}
        self.student, self.teacher = (
            sum(weight.numel() for weight in loaded[role].parameters()) for role in ("student", "teacher")
        )
        self.width = loaded["teacher"].config.hidden_size
        self.head = loaded["teacher"].get_output_embeddings().weight.numel()
        data: InstructionData = instantiate(cfg["data"], tokenizer=tokenizer())
        self.prompt, self.response = self.means(data.train_tokens)
        self.valid_prompt, self.valid_response = self.means(data.valid_tokens)
        tests = {
            name: [data.encoder.example(row) for row in rows] for name, rows in data.test_examples.items()
        }
        self.tests = {
            name: (len(rows), sum(r.n_prompt for r in rows), sum(len(r.ids) for r in rows))
            for name, rows in tests.items()
        }

    @staticmethod
    def means(tokens):
        prompt = sum(n for _, n, _ in tokens) / len(tokens)
        return prompt, sum(tokens.lengths) / len(tokens) - prompt


@pytest.mark.parametrize(
    ("overrides", "drawn", "on_answers"),
    [
        (["text=data"], 0, 0),
        (["text=student"], 1024, 1024),
        (["text=mixed", "text.share=0.25"], 256, 256),
        # φ 0.2 0.4 0.6 0.8 in the four epochs, and 1 - step/steps 0.875 0.625 0.375 0.125 in their middles
        (["text=adaptive", "text.threshold=0.2", "text.increase=0.2"], 192, 512),
        # 4 · 32 answers for 4 · 4 steps, and the 32 steps have two such samples
        (["text=rollouts", "data.plain_text=responses"], 256, 1024),
        (["text=rollouts", "text.rows_per_step=8", "text.batches=2", "text.epochs=2"], 128, 256),
    ],
)
def test_operations_are_those_of_hand(overrides, drawn, on_answers):
    answer, scored = 2, 3
    given = ["teacher=live", *SIZES, *STEPS, *LENGTHS]
    if overrides != ["text=data"]:
        given.append("text.max_new_tokens=2")
    cfg = configured(*given, *overrides)
    cost, hand = Estimator().run(Plan(cfg)), Hand(cfg)
    rollouts, plain = "text=rollouts" in overrides, "data.plain_text=responses" in overrides
    assert cost.steps == 32
    on_data = 0 if rollouts else 1024 - on_answers
    row = hand.prompt + hand.response
    trained = on_data * row + on_answers * (hand.prompt + answer)
    plain_tokens = 1024 * row * plain
    assert cost.tokens == pytest.approx(trained + plain_tokens)
    validations = 5
    operations = (
        6 * hand.student * (trained + plain_tokens)
        + 2 * hand.teacher * trained
        + 2 * (hand.student + hand.teacher * rollouts) * drawn * (hand.prompt + answer)
        + 2 * (hand.student + hand.teacher) * validations * 64 * (hand.valid_prompt + hand.valid_response)
        + 2 * hand.student * validations * 64 * (hand.valid_prompt + scored)
        + sum(2 * hand.student * (prompts + n * 6 * scored) for n, prompts, _ in hand.tests.values())
    )
    assert cost.operations == pytest.approx(operations)


def test_a_stored_teacher_is_asked_about_the_student_s_text_alone():
    cfg = configured("teacher=cached", "text=mixed", *SIZES, *STEPS)
    without = configured("method=sft", *SIZES, *STEPS, "text=mixed")
    hand = Hand(cfg)
    asked = Estimator().run(Plan(cfg)).operations - Estimator().run(Plan(without)).operations
    assert asked == pytest.approx(2 * hand.teacher * 512 * (hand.prompt + hand.response))


def test_validations_without_answers_and_in_every_other_epoch():
    def operations(*overrides):
        return Estimator().run(planned("method=sft", *SIZES, *STEPS, *LENGTHS, *overrides)).operations

    hand = Hand(configured(*SIZES))
    answering = 2 * hand.student * 64 * (hand.valid_prompt + 3)
    validating = 2 * hand.student * 64 * (hand.valid_prompt + hand.valid_response)
    every = operations()
    assert every - operations("data.valid_metric=null") == pytest.approx(5 * answering)
    assert every - operations("trainer.check_val_every_n_epoch=2") == pytest.approx(
        2 * (answering + validating)
    )
    # 12 of the 16 steps of two epochs: before, after the first, and at the end
    fewer = operations("trainer.max_steps=12", "trainer.max_epochs=-1")
    trained = 6 * hand.student * 20 * 32 * (hand.prompt + hand.response)
    assert every - fewer == pytest.approx(trained + 2 * (answering + validating))


def test_of_many_epochs_fifty_end_with_a_validation_at_most():
    def run(epochs):
        return Estimator().run(planned("method=sft", *SIZES, "data.valid_metric=null", *epochs_of(epochs)))

    def epochs_of(n):
        return ["trainer.limit_train_batches=1", f"trainer.max_epochs={n}"]

    hand = Hand(configured(*SIZES))
    validating = 2 * hand.student * 64 * (hand.valid_prompt + hand.valid_response)
    training = 6 * hand.student * 32 * (hand.prompt + hand.response)
    # of 50 epochs all, of 99 every other and the last, of 200 every fourth
    assert run(99).operations - run(50).operations == pytest.approx(49 * training)
    assert run(200).operations - run(50).operations == pytest.approx(150 * training)
    assert run(50).operations - run(49).operations == pytest.approx(training + validating)


def test_adapters_are_trained_at_less():
    plain, adapted = (
        Estimator().run(planned("method=sft", *SIZES, *STEPS, f"model.student.lora={lora}"))
        for lora in ("null", "{r: 4, alpha: 8}")
    )
    weights = Hand(configured(*SIZES)).student
    adapters = (adapted.disk - plain.disk) / 4
    tokens = plain.tokens
    asked = (plain.operations - 6 * weights * tokens) / (2 * weights)  # tokens that are not trained on
    expected = (4 * weights + 6 * adapters) * tokens + 2 * (weights + adapters) * asked
    assert adapted.operations == pytest.approx(expected)
    assert adapted.checkpoints == pytest.approx(4 * 3 * 4 * adapters)


def test_what_the_teacher_does_once():
    cfg = configured("method=kd", "text=teacher", "text.max_new_tokens=2", *SIZES, *STEPS)
    hand = Hand(cfg)
    works = {work.what: work.cost for work in Estimator().shared(Plan(cfg)).values()}
    answers = works["the teacher's answers (random weights)"]
    tokens = 256 * (hand.prompt + 2)
    assert answers.operations == pytest.approx(2 * hand.teacher * tokens)
    assert answers.disk == pytest.approx(4 * tokens)
    states, of_valid = (
        works[f"the teacher's states {when} (random weights)"] for when in ("in training", "at validations")
    )
    valid = 64 * (hand.valid_prompt + hand.valid_response)
    assert states.operations == pytest.approx(2 * hand.teacher * tokens)
    assert states.disk == pytest.approx(4 * hand.width * 256 * 2)
    assert of_valid.operations == pytest.approx(2 * hand.teacher * valid)
    assert of_valid.disk == pytest.approx(4 * (hand.width * 64 * hand.valid_response + hand.head))
    assert answers.checkpoints == states.checkpoints == of_valid.checkpoints == 0
    tuning = works["fine-tuning of the teacher (random weights)"]
    assert tuning.checkpoints == 4 * 3 * 4 * hand.teacher
    assert tuning.disk == 4 * hand.teacher
    data, text = (
        Estimator().run(planned("method=sft", *SIZES, *STEPS, f"text={name}", *max_new))
        for name, max_new in (("data", []), ("teacher", ["text.max_new_tokens=2"]))
    )
    assert data.tokens - text.tokens == pytest.approx(1024 * (hand.response - 2))


def test_a_comparison_with_a_stored_teacher_is_of_the_validation_text():
    alone, compared = (
        configured("method=sft", *SIZES, *STEPS, f"teacher={name}") for name in ("auto", "cached")
    )
    hand, one, other = Hand(alone), Estimator().run(Plan(alone)), Estimator().run(Plan(compared))
    valid = 64 * (hand.valid_prompt + hand.valid_response)
    assert other.operations - one.operations == pytest.approx(5 * 2 * hand.student * valid)
    assert other.memory - one.memory == 4 * hand.head
    works = {work.what: work.cost for work in Estimator().shared(Plan(compared)).values()}
    shared = "the teacher's states at validations (random weights)"
    assert works.keys() == {"fine-tuning of the teacher (random weights)", shared} | {
        work.what for work in Estimator().shared(Plan(alone)).values()
    }
    assert works[shared].operations == pytest.approx(2 * hand.teacher * valid)
    assert works[shared].disk == pytest.approx(4 * (hand.width * 64 * hand.valid_response + hand.head))
    of_kd, of_seqkd = (
        Estimator().shared(planned(f"method={name}", *SIZES, *STEPS, "teacher=cached"))
        for name in ("kd", "seqkd")
    )
    assert Estimator().shared(Plan(compared)).keys() < of_kd.keys()
    assert len(of_kd.keys() & of_seqkd.keys()) == 3  # both fine-tunings, and the states at validations


def test_the_disk_of_a_run_has_its_answers(tmp_path):
    cfg = configured(*SIZES, *STEPS, *LENGTHS)
    hand = Hand(cfg)
    answers = sum(3 * TEXT_BYTES * tokens + n * 6 * 3 * ANSWER_BYTES for n, _, tokens in hand.tests.values())
    assert Estimator().run(Plan(cfg)).disk == pytest.approx(4 * hand.student + answers)
    words = ["Bread ", "is ", "baked ", "in ", "an ", "oven."] * 10  # of 4.5 letters with their spaces
    answer = Answer("".join(words), len(words), True, [-0.123456 * i for i in range(len(words))])
    rows = [Answered("".join(words), "", ("".join(words),), [answer] * 2)] * 20
    write_answers(tmp_path / "a.jsonl", rows, 1)
    estimate = 20 * (TEXT_BYTES * 2 * len(words) + 2 * len(words) * ANSWER_BYTES)
    assert (tmp_path / "a.jsonl").stat().st_size == pytest.approx(estimate, rel=0.15)


def test_the_live_teacher_counts_where_the_text_is_the_students():
    costs = {}
    for text in ("data", "student"):
        cfg = configured("assistant.alpha=-1", f"text={text}")
        costs[text] = Estimator().run(Plan(cfg))
    teacher = ModelSource(architecture=cfg["model"]["teacher"]["architecture"]).load(tokenizer())
    head = teacher.get_output_embeddings().weight.nbytes
    weights = sum(w.nbytes for w in teacher.parameters())
    assert costs["student"].memory - costs["data"].memory == pytest.approx(weights - head, rel=0.01)
