import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amid.reporting import build_table, claims
from amid.reporting.claims import LAMBDAS, judge
from amid.results import Score


def verdicts(runs):
    """The verdict on each claim, by the first words of its text."""
    return {claim.text: claim.verdict for claim in claims(build_table(runs))}


def verdict(runs, words):
    return claim(runs, words).verdict


def claim(runs, words):
    (found,) = [found for found in claims(build_table(runs)) if words in found.text]
    return found


def with_training(run, **figures):
    return dataclasses.replace(run, training=run.training | figures)


def diverged(run):
    return dataclasses.replace(run, scores={name: {} for name in run.scores}, training={"diverged_step": 3.0})


@pytest.fixture
def over_alpha(make_run):
    """Runs over α with three seeds, whose scores are given by α."""

    def runs(quality, self_bleu=lambda alpha: 40.0, alphas=(-5.0, -1.0, 1.0), seeds=(1, 2, 3), **labels):
        return [
            make_run((quality(a) + 0.1 * seed,), (self_bleu(a) + 0.1 * seed,), seed, alpha=a, **labels)
            for a in alphas
            for seed in seeds
        ]

    return runs


class TestJudge:
    seeds = st.dictionaries(st.integers(1, 5), st.floats(0, 100), min_size=1)

    @given(seeds, seeds)
    def test_a_direction_and_its_opposite_never_both_hold(self, a, b):
        one, other = judge(a, b)[0], judge(b, a)[0]
        opposite = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
        assert other == opposite[one]

    @given(seeds, st.floats(0.01, 50))
    def test_a_constant_difference_of_several_seeds_holds(self, a, difference):
        found = judge({seed: value + difference for seed, value in a.items()}, a)[0]
        assert found == ("holds" if len(a) > 1 else "undecided")

    @given(seeds, seeds)
    def test_one_seed_points_a_way_and_does_not_tell(self, a, b):
        one = {1: a[min(a)]}, {1: b[min(b)]}
        found, why = judge(*one)
        difference = one[0][1] - one[1][1]
        way = "that way" if difference > 0 else "the other way" if difference < 0 else "neither way"
        assert found == "undecided"
        assert why == f"the only training seed points {way}: {difference:+.2f}; the spread is unknown"
        at_least = judge(*one, at_least=True)[1]
        assert at_least.startswith(f"the only training seed points {way if difference else 'that way'}: ")

    def test_differences_within_their_spread_tell_nothing(self):
        assert judge({1: 10.0, 2: 12.0}, {1: 11.0, 2: 10.5})[0] == "undecided"
        assert judge({1: 10.0, 2: 12.0}, {1: 11.0, 2: 10.5}, at_least=True)[0] == "holds"

    def test_few_seeds_tell_less_than_many_with_the_same_spread(self):
        assert judge({1: 5.0, 2: 6.0}, {1: 0.0, 2: 0.0})[0] == "undecided"
        assert judge({1: 5.0, 2: 6.0, 3: 5.5}, dict.fromkeys((1, 2, 3), 0.0))[0] == "holds"

    def test_seeds_that_differ_are_not_compared(self):
        unlike = judge({1: 10.0, 2: 11.0}, {3: 1.0, 4: 1.0})
        assert unlike == ("undecided", "missing runs: no seed has both")


class TestAlpha:
    def test_both_directions(self, over_alpha):
        falling = verdicts(over_alpha(lambda a: 50 - a, lambda a: 40 - a))
        rising = verdicts(over_alpha(lambda a: 50 + a, lambda a: 40 + a))
        texts = [text for text in falling if "falls from α = -5 to 1" in text]
        assert len(texts) == 2
        assert {falling[text] for text in texts} == {"holds"}
        assert {rising[text] for text in texts} == {"does not hold"}

    def test_one_seed_or_missing_ends_cannot_be_told(self, over_alpha):
        for runs in (
            over_alpha(lambda a: -a, seeds=(1,)),
            over_alpha(lambda a: -a, alphas=(-5.0, -1.0, 0.0)),
        ):
            assert verdict(runs, "ROUGE-L falls") == "undecided"
        (claim,) = [
            c
            for c in claims(build_table(over_alpha(lambda a: -a, alphas=(-5.0, 0.0))))
            if "ROUGE-L falls" in c.text
        ]
        assert claim.why == "missing runs: α = 1"

    def test_an_end_that_diverged_has_no_mean(self, over_alpha):
        runs = [diverged(run) if run.labels["alpha"] == 1 else run for run in over_alpha(lambda a: -a)]
        assert claim(runs, "ROUGE-L falls").why == "3 of 6 runs diverged"

    def test_one_seed_says_which_way_it_points(self, over_alpha):
        runs = over_alpha(lambda a: 50 - a, lambda a: 40 + a, seeds=(1,))
        assert "the only training seed points that way: +6.00;" in claim(runs, "ROUGE-L falls").why
        assert "the only training seed points the other way: -6.00;" in claim(runs, "Self-BLEU falls").why

    @pytest.mark.parametrize(
        ("scores", "said"),
        [
            ((9, 8, 7, 6, 5, 4), "over 6 α 5 of 5 steps fall, ρ = -1.00"),
            ((4, 5, 6, 7, 8, 9), "over 6 α 0 of 5 steps fall, ρ = +1.00"),
            # ρ = 1 - 6 Σ d² / (n (n² - 1)) with Σ d² = 25 + 1 + 4 + 4 + 1 + 9
            ((9, 4, 8, 5, 7, 6), "over 6 α 3 of 5 steps fall, ρ = -0.26"),
            ((9, 9, 9, 1, 1, 1), "over 6 α 1 of 5 steps fall, ρ = -0.88"),
            ((9, 9, 9, 9, 9, 9), "over 6 α 0 of 5 steps fall)"),
        ],
    )
    def test_the_whole_grid(self, over_alpha, scores, said):
        alphas = (-5.0, -3.0, -1.0, 0.0, 0.5, 1.0)
        runs = over_alpha(dict(zip(alphas, scores, strict=True)).get, alphas=alphas)
        assert said in str(claim(runs, "ROUGE-L falls"))
        without_the_end = [run for run in runs if run.labels["alpha"] < 1]
        why = claim(without_the_end, "ROUGE-L falls").why
        assert why.startswith("missing runs: α = 1; over 5 α ")
        lost = [diverged(run) if run.labels["alpha"] == -3 and run.seed == 1 else run for run in runs]
        assert "; over 5 α " in claim(lost, "ROUGE-L falls").why

    def test_two_alphas_are_no_grid(self, over_alpha):
        assert (
            "over" not in claim(over_alpha(lambda a: -a, alphas=(-5.0, 1.0), seeds=(1,)), "ROUGE-L falls").why
        )

    def test_diverged_runs_are_no_scores(self, over_alpha):
        runs = [diverged(r) if r.labels["alpha"] == 1 else r for r in over_alpha(lambda a: 50 - a)]
        assert verdict(runs, "ROUGE-L falls") == "undecided"

    def test_the_free_alpha_is_chosen_on_the_validation_set(self, over_alpha):
        scores = {-5.0: 60.0, -3.0: 40.0, -1.0: 50.0, 1.0: 45.0}
        for chosen, expected in ((-5.0, "holds"), (-3.0, "does not hold")):
            runs = [
                with_training(r, valid_rouge_l=float(r.labels["alpha"] == chosen))
                for r in over_alpha(scores.get, alphas=tuple(scores))
            ]
            assert verdict(runs, "A free α") == expected
        assert verdict(over_alpha(scores.get, alphas=(-5.0, 1.0)), "A free α") == "undecided"
        unchosen = claim(over_alpha(scores.get, alphas=tuple(scores)), "A free α")
        assert unchosen.verdict == "undecided"
        assert unchosen.why == "no run has a validation ROUGE-L to choose α by"


class TestLambda:
    @pytest.fixture
    def over_lam(self, make_run):
        return lambda quality, lams=LAMBDAS, seeds=(1, 2): [
            make_run((quality(lam) + 0.1 * seed,), seed=seed, lam=lam) for lam in lams for seed in seeds
        ]

    def test_both_directions(self, over_lam):
        assert verdict(over_lam(lambda lam: 50 - lam), "λ = 0.1 is the best") == "holds"
        assert verdict(over_lam(lambda lam: 50 + lam), "λ = 0.1 is the best") == "does not hold"
        assert verdict(over_lam(lambda lam: 50 - lam), "No λ fails") == "holds"
        assert verdict(over_lam(lambda lam: 0.0 if lam == 0.9 else 50), "No λ fails") == "does not hold"

    def test_a_part_of_the_grid_or_one_seed_cannot_be_told(self, over_lam):
        for runs in (over_lam(lambda lam: 50 - lam, (0.1, 0.9)), over_lam(lambda lam: 50 - lam, seeds=(1,))):
            assert set(verdicts(runs).values()) == {"undecided"}

    def test_one_seed_says_which_way_it_points(self, over_lam):
        falling = over_lam(lambda lam: 50 - lam, seeds=(1,))
        assert "seed points that way: +0.20;" in claim(falling, "λ = 0.1 is the best").why
        assert "seed points that way: none of 5 runs failed;" in claim(falling, "No λ fails").why
        rising = over_lam(lambda lam: 50 + lam, seeds=(1,))
        assert "seed points the other way: -0.80;" in claim(rising, "λ = 0.1 is the best").why

    def test_a_run_that_fails_tells_with_a_part_of_the_grid(self, over_lam):
        runs = over_lam(lambda lam: 50 - lam, (0.1, 0.9), seeds=(1,))
        assert verdict([runs[0], diverged(runs[1])], "No λ fails") == "does not hold"


class TestDivergence:
    def runs(self, over_alpha, spreads):
        return [
            run
            for divergence, spread in spreads.items()
            for run in over_alpha(lambda a, s=spread: 50 - s * a, divergence=divergence)
        ]

    def test_the_smallest_spread(self, over_alpha):
        runs = self.runs(over_alpha, {"kl": 2, "reverse_kl": 3, "alpha_beta": 1})
        assert verdict(runs, "αβ has the smallest") == "holds"
        runs = self.runs(over_alpha, {"kl": 0.5, "reverse_kl": 3, "alpha_beta": 1})
        assert verdict(runs, "αβ has the smallest") == "does not hold"
        runs = self.runs(over_alpha, {"kl": 0.5, "reverse_kl": 3})
        assert verdict(runs, "αβ has the smallest") == "undecided"

    def test_the_corner_of_reverse_kl(self, over_alpha):
        def corner(quality, seeds=(1, 2)):
            return over_alpha(lambda a: quality if a == 1 else 50, divergence="reverse_kl", seeds=seeds)

        words = "Reverse KL, KL(r ‖ p), fails"
        assert verdict(corner(0.1), words) == "holds"
        assert verdict(corner(45), words) == "does not hold"
        for quality, way in ((0.1, "that way: 1 of 1"), (45, "the other way: 0 of 1")):
            found = claim(corner(quality, (1,)), words)
            assert found.verdict == "undecided"
            assert (
                f"the only training seed points {way} runs failed, ROUGE-L {quality + 0.1:.1f};" in found.why
            )
        lost = [diverged(run) if run.labels["alpha"] == 1 else run for run in corner(45)]
        assert verdict(lost, words) == "holds"
        assert verdict([*lost[:-1], corner(45)[-1]], words) == "undecided"


class TestMethods:
    def test_every_baseline_of_the_same_pair(self, make_run):
        def runs(ours, model="tiny"):
            return [
                make_run((score + 0.1 * seed,), seed=seed, model=model, **labels)
                for seed in (1, 2)
                for score, labels in ((ours, {}), (40, {"method": "sft"}), (50, {"method": "kd"}))
            ]

        assert verdict(runs(55), "AMiD is above every baseline, SFT, KD") == "holds"
        assert verdict(runs(45), "AMiD is above every baseline") == "does not hold"
        both = verdicts([*runs(55, "a"), *runs(45, "b")])
        assert [v for text, v in both.items() if "(a)" in text] == ["holds"]
        assert [v for text, v in both.items() if "(b)" in text] == ["does not hold"]

    def test_a_baseline_over_lam_or_alpha_stays_one(self, make_run):
        skewed = [make_run((60.0,), method="distillm_srkl", lam=lam, alpha=-1.0) for lam in (0.7, 0.9)]
        found = claim([make_run((50.0,)), *skewed], "AMiD is above every baseline, DistiLLM SRKL")
        assert "the other way" in found.why
        skewed = [make_run((60.0,), method="distillm_srkl", alpha=alpha) for alpha in (-5.0, -1.0, 1.0)]
        assert [c.text for c in claims(build_table([make_run(), *skewed]))] == [found.text]

    def test_another_setting_of_amid_is_not_the_paper_s(self, make_run):
        assert not verdicts([make_run(lam=0.5), make_run(method="kd")])


def test_nothing_is_told_by_the_seeds_that_did_not_diverge(over_alpha):
    runs = over_alpha(lambda alpha: 40 - alpha, divergence="kl")
    claim = next(c for c in claims(build_table(runs)) if "α = -5" in c.text)
    assert claim.verdict == "holds"
    failed = [diverged(runs[-1]), *runs[:-1]]
    claim = next(c for c in claims(build_table(failed)) if "α = -5" in c.text)
    assert claim.verdict == "undecided"
    assert "1 of 6 runs diverged" in claim.why


def test_a_table_without_the_axes_of_a_claim_has_none(make_run):
    assert not claims(build_table([make_run()]))
    nan = dataclasses.replace(
        make_run(), scores={"dolly": {"rouge_l": Score(float("nan"), None, [float("nan")])}}
    )
    assert not claims(build_table([nan]))
