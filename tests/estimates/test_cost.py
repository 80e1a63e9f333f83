import pytest
from hydra.utils import instantiate

from amid.config.compose import as_dict
from amid.config.sweeps import read_sweep
from amid.data import InstructionData
from amid.data.builtin import tokenizer
from amid.estimates.cost import ANSWER_BYTES, TEXT_BYTES, Estimator
from amid.experiment.plan import Plan
from amid.models.quantization import weight_bytes
from amid.models.source import ModelSource
from amid.scoring.answers import Answer, Answered, write_answers

SIZES = ["data.train.size=256", "data.valid.size=64", "data.test.open.size=48", "data.test.closed.size=16"]
STEPS = ["trainer.limit_train_batches=null", "trainer.max_epochs=4"]  # 4 epochs of 8 steps of 32 rows
ESTIMATOR = Estimator()
"""It reads each model and each data set once for all tests."""
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
        prompt = sum(row.n_prompt for row in tokens) / len(tokens)
        return prompt, sum(tokens.lengths) / len(tokens) - prompt


@pytest.mark.parametrize(
    ("overrides", "on_answers"),
    [
        (["text=data"], 0),
        (["text=student"], 1024),
        (["text=mixed", "text.share=0.25"], 256),
        (["text=adaptive", "text.threshold=0.2", "text.increase=0.2"], 1024),
        (["text=rollouts", "data.plain_text=responses"], 1024),
        (["text=rollouts", "text.rows_per_step=8", "text.batches=2", "text.epochs=2"], 256),
    ],
)
def test_steps_and_tokens_are_those_of_hand(overrides, on_answers):
    answer = 2
    given = ["teacher=live", *SIZES, *STEPS, *LENGTHS]
    if overrides != ["text=data"]:
        given.append("text.max_new_tokens=2")
    cfg = configured(*given, *overrides)
    cost, hand = ESTIMATOR.run(Plan(cfg)), Hand(cfg)
    rollouts, plain = "text=rollouts" in overrides, "data.plain_text=responses" in overrides
    assert cost.steps == 32
    on_data = 0 if rollouts else 1024 - on_answers
    row = hand.prompt + hand.response
    trained = on_data * row + on_answers * (hand.prompt + answer)
    assert cost.tokens == pytest.approx(trained + 1024 * row * plain)


def test_adapters_take_little_room():
    plain, adapted = (
        ESTIMATOR.run(planned("method=sft", *SIZES, *STEPS, f"model.student.lora={lora}"))
        for lora in ("null", "{r: 4, alpha: 8}")
    )
    adapters = (adapted.disk - plain.disk) / 4
    assert adapters > 0
    assert adapted.tokens == plain.tokens
    assert adapted.checkpoints == pytest.approx(4 * 3 * 4 * adapters)


def test_an_average_of_the_weights_is_one_more_copy_of_them():
    plain, averaged = (
        ESTIMATOR.run(planned("method=sft", *SIZES, *STEPS, f"callbacks={chosen}"))
        for chosen in ("[]", "[ema,early_stopping]")
    )
    copy = averaged.memory - plain.memory
    assert copy == plain.checkpoints / 12  # the weights of four checkpoints, each with two moments
    assert averaged.checkpoints - plain.checkpoints == 4 * copy


def test_tokens_at_once_are_no_more_than_the_step_and_no_less_than_a_row():
    def memory(*overrides):
        return ESTIMATOR.run(
            planned("method=sft", "data.batch_size=8", "data.max_length=60", *overrides)
        ).memory

    whole, row = memory(), memory("data.micro_batch_size=1")
    assert row < memory("data.tokens_per_batch=120") < whole
    assert memory("data.tokens_per_batch=1000000") == whole
    assert memory("data.tokens_per_batch=30") == row, "a longer row goes alone"


def test_sums_of_gradients_take_eight_bytes_a_weight():
    costs = [ESTIMATOR.run(planned("method=sft", f"data.sharing={of}")) for of in ("rows", "micro_batches")]
    average = ESTIMATOR.run(planned("method=sft", "callbacks=ema")).memory - costs[0].memory
    assert costs[1].memory - costs[0].memory == 2 * average > 0, "an average takes four"


def test_a_checkpoint_has_the_states_of_the_optimizer_that_is_chosen():
    def checkpoints(*overrides):
        return ESTIMATOR.run(planned("method=sft", *SIZES, *STEPS, *overrides)).checkpoints

    whole = checkpoints()
    narrow = ("model.student.dtype=bfloat16", "optimizer=adamw_master_weights")
    assert checkpoints(*narrow) == pytest.approx(whole * (2 + 4 + 8) / 12)
    assert checkpoints("optimizer=adamw_8bit") < 0.7 * whole


def test_what_the_teacher_does_once():
    cfg = configured("method=kd", "text=teacher", "text.max_new_tokens=2", *SIZES, *STEPS)
    hand = Hand(cfg)
    works = {work.what: work.cost for work in ESTIMATOR.shared(Plan(cfg)).values()}
    answers = works["the teacher's answers (random weights)"]
    tokens = 256 * (hand.prompt + 2)
    assert answers.disk == pytest.approx(4 * tokens)
    states, of_valid = (
        works[f"the teacher's states {when} (random weights)"] for when in ("in training", "at validations")
    )
    assert states.disk == pytest.approx(4 * hand.width * 256 * 2)
    assert of_valid.disk == pytest.approx(4 * (hand.width * 64 * hand.valid_response + hand.head))
    assert answers.checkpoints == states.checkpoints == of_valid.checkpoints == 0
    tuning = works["fine-tuning of the teacher (random weights)"]
    assert tuning.checkpoints == 4 * 3 * 4 * hand.teacher
    assert tuning.disk == 4 * hand.teacher
    data, text = (
        ESTIMATOR.run(planned("method=sft", *SIZES, *STEPS, f"text={name}", *max_new))
        for name, max_new in (("data", []), ("teacher", ["text.max_new_tokens=2"]))
    )
    assert data.tokens - text.tokens == pytest.approx(1024 * (hand.response - 2))


@pytest.mark.parametrize(
    ("override", "shared"),
    [
        ("trainer.precision=bf16-true", set()),  # of the fine-tunings too
        ("teacher.states=int8", {"answers", "fine-tunings"}),
        ("data.turns=last", set()),
        ("data.truncation=right", set()),
        ("model.teacher.sft.seed=9", {"fine-tuning of the student"}),
        ("model.teacher.attention=eager", {"answers", "fine-tunings", "states"}),
    ],
)
def test_runs_share_what_has_the_same_values(override, shared):
    given = ("method=kd", "text=teacher", "teacher=cached", *SIZES, *STEPS)
    one, other = (ESTIMATOR.shared(planned(*given, *more)) for more in ((), (override,)))
    names = {
        "answers": {"the teacher's answers (random weights)"},
        "fine-tuning of the student": {"fine-tuning of the student (random weights)"},
        "fine-tunings": {f"fine-tuning of the {role} (random weights)" for role in ("teacher", "student")},
        "states": {
            f"the teacher's states {when} (random weights)" for when in ("in training", "at validations")
        },
    }
    expected = set().union(*(names[name] for name in shared))
    assert {one[key].what for key in one.keys() & other.keys()} == expected


def test_tokens_at_once_are_of_the_text_that_is_trained_on():
    def memory(*overrides):
        return ESTIMATOR.run(planned("method=minillm", "teacher=live", *SIZES, *STEPS, *overrides)).memory

    usual = memory("data.max_length=60", "data.max_prompt_length=30", "text.max_new_tokens=30")
    assert memory("data.max_length=60", "data.max_prompt_length=30", "text.max_new_tokens=130") > 2 * usual
    assert memory("data.max_length=60", "data.max_prompt_length=30", "text.rows_per_step=128") > 2 * usual


def test_a_comparison_with_a_stored_teacher_is_of_the_validation_text():
    alone, compared = (
        configured("method=sft", *SIZES, *STEPS, f"teacher={name}") for name in ("auto", "cached")
    )
    hand, one, other = Hand(alone), ESTIMATOR.run(Plan(alone)), ESTIMATOR.run(Plan(compared))
    assert other.memory - one.memory == 4 * hand.head
    works = {work.what: work.cost for work in ESTIMATOR.shared(Plan(compared)).values()}
    shared = "the teacher's states at validations (random weights)"
    assert works.keys() == {"fine-tuning of the teacher (random weights)", shared} | {
        work.what for work in ESTIMATOR.shared(Plan(alone)).values()
    }
    assert works[shared].disk == pytest.approx(4 * (hand.width * 64 * hand.valid_response + hand.head))
    of_kd, of_seqkd = (
        ESTIMATOR.shared(planned(f"method={name}", *SIZES, *STEPS, "teacher=cached"))
        for name in ("kd", "seqkd")
    )
    assert ESTIMATOR.shared(Plan(compared)).keys() < of_kd.keys()
    assert len(of_kd.keys() & of_seqkd.keys()) == 3  # both fine-tunings, and the states at validations


def test_the_disk_of_a_run_has_its_answers(tmp_path):
    cfg = configured(*SIZES, *STEPS, *LENGTHS, "generation.temperatures=null")
    hand = Hand(cfg)
    answers = sum(3 * TEXT_BYTES * tokens + n * 6 * 3 * ANSWER_BYTES for n, _, tokens in hand.tests.values())
    assert ESTIMATOR.run(Plan(cfg)).disk == pytest.approx(4 * hand.student + answers)
    ladder = configured(*SIZES, *STEPS, *LENGTHS, "generation.temperatures=[0.5,0.7,1.0]")
    assert ESTIMATOR.run(Plan(ladder)).disk == pytest.approx(4 * hand.student + 3 * answers)
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
        costs[text] = ESTIMATOR.run(Plan(cfg))
    teacher = ModelSource(architecture=cfg["model"]["teacher"]["architecture"]).load(tokenizer())
    head = teacher.get_output_embeddings().weight.nbytes
    weights = sum(w.nbytes for w in teacher.parameters())
    assert costs["student"].memory - costs["data"].memory == pytest.approx(weights - head, rel=0.01)


def test_memory_and_disk_of_a_large_teacher_and_of_several_devices():
    def live(*overrides):
        return ESTIMATOR.run(planned("method=kd", "teacher=live", *SIZES, *STEPS, *overrides)).memory

    exact = live()
    skeleton = ESTIMATOR.facts.skeleton(planned("method=kd"), "teacher")
    for to in ("int8", "int4", "nf4"):
        saved = weight_bytes(skeleton) - weight_bytes(skeleton, to)
        assert saved > 0.5 * weight_bytes(skeleton)
        assert exact - live(f"model.teacher.quantization={to}") == saved
    one, two, four = (live(f"trainer.devices={n}") for n in (1, 2, 4))
    assert one == exact
    assert one - two == pytest.approx(2 * (two - four), rel=0.01), "32, 16 and 8 rows"
    deep = "model.student.architecture.num_hidden_layers=4"
    assert live(deep, "model.student.gradient_checkpointing=true") < live(deep)

    def states(*overrides):
        plan = planned("method=kd", *SIZES, *STEPS, "teacher=cached", *overrides)
        works = {work.what: work.cost for work in ESTIMATOR.shared(plan).values()}
        return works["the teacher's states in training (random weights)"]

    width = skeleton.config.hidden_size
    assert states("teacher.states=int8").disk == pytest.approx(states().disk * (width + 4) / (4 * width))
    whole = states().memory
    assert whole == weight_bytes(skeleton)
    on_gpu = ", ".join(
        f"{name}: 0" for name in ("model.embed_tokens", "model.norm", "model.layers.0", "lm_head")
    )
    spread = f"model.teacher.device_map={{{on_gpu}, model.layers.1: cpu}}"
    layer = sum(weight.nbytes for weight in skeleton.model.layers[1].parameters())
    assert states(spread).memory == whole - layer
