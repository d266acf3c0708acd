"""Each gate on problems small enough to be computed by hand beside it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.nn import functional

from workers.unlearning import Thresholds, UpdateReport, Verdict
from workers.unlearning.errors import NothingToForget, TooFewRetrainings
from workers.unlearning.stability import Trial
from workers.unlearning.testing import Classification
from workers.unlearning.verification import Gate, Sides, distance_ratio, oracle
from workers.unlearning.verification.forgetting import forgetting
from workers.unlearning.verification.numerics import numerics
from workers.unlearning.verification.scores import Answers, Scores, user_means
from workers.unlearning.verification.segments import by_segment
from workers.unlearning.verification.standing import Statistic
from workers.unlearning.verification.structure import structure
from workers.unlearning.verification.utility import utility

torch.set_num_threads(1)
STEP = Trial(0.0, 1.0, 0.9, 0.01, 1.0, 1e-3, 5, accepted=True)
FINE = {"w": torch.zeros(2)}


def _report(*trials: Trial, **values: Any) -> UpdateReport:
    return UpdateReport("newton", True, None, 6, 60, 2, trials=trials, **values)


@dataclasses.dataclass(frozen=True)
class Truncated(UpdateReport):
    """A report that says its solve was cut short on purpose."""

    truncated: bool = True


def _truncated(*trials: Trial, complete: bool = True, function_step: float | None = None) -> Truncated:
    return Truncated("projection", complete, None, 6, 60, 2, trials=trials, function_step=function_step)


# --- G0 ---


class Normed(Classification):
    """Logistic regression behind a BatchNorm."""

    def build(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 3)).double()


def _structure_of(report: UpdateReport, *moved: str) -> Gate:
    recipe = Normed(users=4)
    before = recipe.build().state_dict()
    after = {name: tensor + 1 if name in moved else tensor.clone() for name, tensor in before.items()}
    sides = Sides([[0]], [[1]], [1, 2], [[3]])
    return structure(recipe, before, after, sides=sides, update=report, exact=False)


def test_batch_statistics_may_change_where_the_update_says_that_it_estimated_them_anew() -> None:
    report = _report(recomputed_buffers=("0.running_mean",))
    assert _structure_of(report, "1.weight", "0.running_mean").outcome == "passed"
    assert _structure_of(_report(), "1.weight", "0.running_mean").outcome == "failed"
    assert _structure_of(report, "1.weight", "0.running_var").outcome == "failed"


def test_recomputed_statistics_alone_are_no_update() -> None:
    gate = _structure_of(_report(recomputed_buffers=("0.running_mean",)), "0.running_mean")
    assert (gate.outcome, gate.sentence) == ("failed", "No weight has changed.")


# --- G1 ---


def _judged(report: UpdateReport) -> str:
    return numerics(FINE, report, Thresholds(), exact=False).outcome


def test_a_truncated_solve_is_judged_by_what_its_steps_did_and_not_by_its_residual() -> None:
    unsolved = dataclasses.replace(STEP, relative_residual=0.7)
    assert _judged(_truncated(unsolved)) == "passed"
    assert _judged(_report(unsolved)) == "failed"
    assert _judged(_truncated(dataclasses.replace(unsolved, actual_decrease=0.1))) == "failed"
    assert _judged(_truncated(dataclasses.replace(unsolved, function_step=0.9))) == "failed"
    assert _judged(_truncated(unsolved, function_step=0.9)) == "failed"
    assert _judged(_truncated(unsolved, complete=False)) == "failed"


def test_a_truncated_update_that_shows_no_step_shows_nothing() -> None:
    assert _judged(_truncated()) == "failed"
    assert _judged(_truncated(function_step=0.01)) == "passed"


def test_numbers_that_are_not_finite_fail_whatever_the_method() -> None:
    nan = dataclasses.replace(STEP, function_step=math.nan)
    assert _judged(_truncated(nan)) == "failed"
    assert numerics({"w": torch.tensor([math.inf])}, _truncated(STEP), Thresholds(), exact=True).outcome == "failed"


# --- G2: classes and groups ---


def _answers(labels: Tensor, hits: Tensor) -> Answers:
    """Three classes; right where hits says so, the next class otherwise."""
    said = torch.where(hits, labels, (labels + 1) % 3)
    outputs = 4.0 * functional.one_hot(said, 3).double()
    return Answers(outputs, labels, functional.cross_entropy(outputs, labels, reduction="none"))


def _segments(lost_of_class_2: int, each: int = 200, **groups: Sequence[int]) -> dict[str, dict[str, Any]]:
    labels = torch.arange(3).repeat_interleave(each)
    hits = torch.ones(3 * each, dtype=torch.bool)
    after = hits.clone()
    after[2 * each : 2 * each + lost_of_class_2] = False
    pair = _answers(labels, hits), _answers(labels, after)
    ids = {"strangers": range(3 * each)}
    found = by_segment({"strangers": pair}, ids, groups=groups, scale=1.0, thresholds=Thresholds())
    return {segment.name: segment.as_dict([0.01, -0.02]) for segment in found}


def test_a_class_that_pays_for_the_others_fails() -> None:
    found = _segments(80, each=600)
    assert found["class 2, strangers"]["outcome"] == "failed"
    assert found["class 0, strangers"]["outcome"] == "passed"
    assert found["class 2, strangers"]["accuracy"] == (1.0, pytest.approx(13 / 15))
    assert found["class 2, strangers"]["changed"] == pytest.approx(2 / 15)


def test_a_class_too_small_to_pass_can_still_fail() -> None:
    found = _segments(30, each=40)
    assert found["class 0, strangers"]["outcome"] == "not judged"
    assert found["class 2, strangers"]["outcome"] == "failed"


def test_the_change_of_accuracy_is_agresti_and_mins() -> None:
    """b = 40 lost, c = 0 gained of n = 200, half a pair more in each of the four cells."""
    b, c, n = 40.5, 0.5, 202
    segment = _segments(40)["class 2, strangers"]
    assert segment["worsening"] == pytest.approx((b - c) / n)
    assert segment["error"] == pytest.approx(math.sqrt((b + c) - (b - c) ** 2 / n) / n)
    assert segment["p_failing"] == pytest.approx(3 * stats.norm.sf((segment["worsening"] - 0.05) / segment["error"]))
    spread = math.sqrt((0.01**2 + 0.02**2) / 2)
    assert segment["worsening_in_retraining_spreads"] == pytest.approx(segment["worsening"] / spread)


def test_a_small_group_is_listed_as_not_judged_and_an_empty_one_too() -> None:
    found = _segments(0, islanders=range(5), ghosts=[99999])
    assert found["group islanders, strangers"]["outcome"] == "not judged"
    assert found["group islanders, strangers"]["needed"] > 5
    assert found["group ghosts, strangers"]["outcome"] == "not judged"
    assert found["class 0, strangers"]["outcome"] == "passed"


def test_a_group_named_like_a_class_is_judged_beside_it_and_not_instead() -> None:
    """Class 2 pays; the group of that name is class 1, which does not."""
    alone, found = _segments(80, each=600), _segments(80, each=600, **{"class 2": range(600, 1200)})
    assert len(found) == 4
    assert found["class 2, strangers"]["outcome"] == alone["class 2, strangers"]["outcome"] == "failed"
    assert found["group class 2, strangers"]["outcome"] == "passed"


def test_unharmed_segments_raise_a_doubt_about_as_seldom_as_stated() -> None:
    """10 % of hits flip either way, 3 classes just as large as needed: a doubt in about 10 % of draws at most."""
    labels, doubts, draws = torch.arange(3).repeat_interleave(560), 0, 300
    for seed in range(draws):
        rand = torch.rand(2, 1680, generator=torch.Generator().manual_seed(seed))
        before = rand[0] < 0.5
        pair = _answers(labels, before), _answers(labels, torch.where(rand[1] < 0.1, ~before, before))
        ids = {"strangers": range(1680)}
        found = by_segment({"strangers": pair}, ids, groups={}, scale=1.0, thresholds=Thresholds())
        assert not [s for s in found if s.outcome == "failed"]
        doubts += any(s.outcome == "inconclusive" for s in found)
    assert doubts / draws <= 0.1 + 3 * math.sqrt(0.09 / draws)


class Said:
    """Weights are the answers: row i of the outputs is what the model says about sample i."""

    l2_per_sample = l2_total = 0.0

    def __init__(self, targets: Tensor, classes: int) -> None:
        self.targets, self.shape = targets, (len(targets), classes)

    def build(self) -> torch.nn.Module:
        return torch.nn.Embedding(*self.shape, dtype=torch.float64)

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        return torch.tensor(list(sample_ids)), self.targets[list(sample_ids)]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return (outputs[:, 0] - targets).square()
        return functional.cross_entropy(outputs, targets, reduction="none")


def _scores(recipe: Said, **outputs: Tensor) -> Scores:
    named = {name.replace("_", " "): {"weight": tensor} for name, tensor in outputs.items()}
    return Scores(recipe, named, batch_size=64)


def test_a_harmed_group_fails_an_update_and_raises_a_doubt_about_a_retraining() -> None:
    right = torch.arange(900) % 3
    recipe, sure = Said(right, 3), 4.0 * functional.one_hot(right, 3).double()
    worse = sure.clone()
    worse[300:330] = 0.5 * sure[300:330].roll(1, dims=-1)
    sides = Sides([[0]], [[1]], range(300), [[i] for i in range(300, 900)])
    lenient = Thresholds(loss_margin=1e9, accuracy_margin=0.5)
    scores, groups = _scores(recipe, before=sure, after=worse), {"north": range(300, 480)}
    gates = [utility(scores, sides, lenient, groups=groups, spread=(), exact=exact) for exact in (False, True)]
    assert [gate.outcome for gate in gates] == ["failed", "inconclusive"]
    assert gates[0].sentence.startswith("group north, strangers is worse")
    assert gates[0].numbers["changed_predictions"]["strangers"] == pytest.approx(30 / 600)


class Density(Said):
    """A loss that may be negative, as a logarithm of a density: the squared difference less 8."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square() - 8


def test_a_loss_below_zero_has_a_tolerance_above_it() -> None:
    draw = torch.randn(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = Sides([[0]], [[1]], range(100), [[i] for i in range(100, 300)])
    gates = [
        utility(_scores(Density(torch.zeros(300).double(), 1), before=draw, after=draw + worse), sides, Thresholds(),
                groups={}, spread=(), exact=False)
        for worse in (1e-6, 3.0)
    ]  # fmt: skip
    assert [gate.outcome for gate in gates] == ["passed", "failed"]
    margin = gates[0].numbers["checks"]["loss, retained samples"]["margin"]
    assert margin == pytest.approx(0.05 * float((draw[100:].square() - 8).abs().mean()))


# --- G3 ---


class Kept:
    """Out-of-fold outputs; asking a teacher is an error."""

    judges = (1, 3, 4)

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs

    def of(self, sample_ids: Sequence[int], *, repeats: Sequence[int]) -> Tensor:
        assert set(repeats) <= set(self.judges), "a teacher was asked to judge"
        return self.outputs[list(repeats)][:, list(sample_ids)]


def test_confidence_is_the_logit_of_the_right_class() -> None:
    outputs, targets = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(20) % 4
    p = special.softmax(outputs.numpy(), axis=1)[range(20), targets]
    found = Answers(outputs, targets, torch.zeros(20).double()).confidence
    assert found.tolist() == pytest.approx(special.logit(p).tolist())


def test_confidence_stays_finite_where_the_probability_rounds_to_one() -> None:
    found = Answers(torch.tensor([[900.0, 0.0, -5.0]]), torch.tensor([0]), torch.zeros(1)).confidence
    assert float(found) == pytest.approx(900 - math.log1p(math.exp(-5)))


def test_users_have_the_means_of_their_own_samples() -> None:
    assert user_means(torch.arange(6.0), [[9, 8], [7], [6, 5, 4]]).tolist() == [0.5, 2.0, 4.0]


def _people(seed: int = 0, strangers: int = 40, members: int = 3) -> tuple[Said, Sides, Tensor, Kept]:
    """One user, members, strangers; two samples each; the references of five repeats."""
    draw = torch.Generator().manual_seed(seed)
    count = 2 * (1 + members + strangers)
    recipe = Said(torch.randint(0, 3, (count,), generator=draw), 3)
    people = [[2 * k, 2 * k + 1] for k in range(count // 2)]
    stay, unseen = people[1 : 1 + members], people[1 + members :]
    sides = Sides(people[:1], stay, [i for ids in stay for i in ids], unseen)
    outputs = torch.randn(6, count, 3, generator=draw, dtype=torch.float64)
    return recipe, sides, outputs[5], Kept(outputs[:5])


def test_the_calibrated_statistic_is_the_one_written_down() -> None:
    """φ, its mean and variance over three judges, shrunk by four repeats' worth of the pooled one: with scipy."""
    recipe, sides, model, kept = _people()

    def phi(outputs: Tensor) -> Tensor:
        p = special.softmax(outputs.numpy(), axis=1)[range(len(outputs)), recipe.targets]
        return torch.tensor(special.logit(p))

    judged = torch.stack([phi(kept.outputs[r]) for r in (1, 3, 4)])
    variance = judged.var(0, unbiased=True)
    shrunk = (4 * variance.mean() + 2 * variance) / 6
    z = (phi(model) - judged.mean(0)) / shrunk.sqrt()
    standing, _ = Statistic(_scores(recipe, before=model), sides, kept).standings("before")
    assert standing.users.tolist() == pytest.approx([float(z[:2].mean())])
    assert standing.strangers.tolist() == pytest.approx(z[8:].reshape(-1, 2).mean(1).tolist())


def test_without_references_the_statistic_is_the_loss() -> None:
    recipe, sides, model, _ = _people()
    statistic = Statistic(_scores(recipe, before=model), sides, None)
    losses = functional.cross_entropy(model, recipe.targets, reduction="none")
    assert (statistic.name, statistic.judges) == ("raw", 0)
    assert statistic.standings("before")[0].members.tolist() == pytest.approx(
        (-losses[2:8].reshape(3, 2).mean(1)).tolist()
    )


@pytest.mark.slow
def test_a_user_who_is_like_a_stranger_has_uniform_ranks_by_the_calibrated_statistic() -> None:
    ranks = []
    for seed in range(200):
        recipe, sides, model, kept = _people(seed, strangers=19)
        scores = _scores(recipe, before=model, after=model)
        ranks.append(forgetting(scores, sides, kept, Thresholds()).numbers["p_remembered"][0])
    counts = [sum(round(20 * p) == k for p in ranks) for k in range(1, 21)]
    assert stats.chisquare(counts).pvalue > 0.001


def _remembered(**pull: float) -> Gate:
    """Members are known by 6 logits; the user by as much as said for each model."""
    recipe, sides, model, kept = _people(strangers=120, members=20)
    outputs = {}
    for name, strength in pull.items():
        known = model.clone()
        known[:2] += strength * functional.one_hot(recipe.targets[:2], 3)
        known[2:42] += 9 * functional.one_hot(recipe.targets[2:42], 3)
        outputs[name] = known
    return forgetting(_scores(recipe, **outputs), sides, kept, Thresholds())


def test_a_memory_that_returns_with_one_more_epoch_was_suppressed_and_fails() -> None:
    gate = _remembered(before=9.0, after=0.0, after_an_epoch=9.0)
    assert gate.outcome == "failed"
    assert "suppressed, not removed" in gate.sentence
    assert gate.numbers["resurrection"]["flagged"] == 1
    assert _remembered(before=9.0, after=0.0, after_an_epoch=0.0).outcome == "passed"


def test_both_tails_are_failures() -> None:
    assert "still look like members" in _remembered(before=9.0, after=9.0).sentence
    assert "stand out as forgotten" in _remembered(before=9.0, after=-12.0).sentence


def test_where_the_unchanged_model_would_have_passed_nothing_passes_without_having_moved() -> None:
    """p before deletion is above the level, and most members are recognised all the same: a no-op must not pass."""
    for strength in (0.0, 0.6, 1.2, 1.8, 2.4, 3.0):
        gate = _remembered(before=strength, after=strength + 1e-9)
        assert gate.outcome != "passed"


def _placed(*, before: Sequence[float], after: Sequence[float], members: int = 20, **more: Any) -> Gate:
    """One sample each, T = minus the loss given: users as told, members 0, strangers 1, 2, … 120."""
    users, strangers = len(before), 120
    losses = {"before": before, "after": after}
    recipe = Said(torch.zeros(users + members + strangers, dtype=torch.float64), 1)
    known = {
        model: torch.tensor([*of_users, *[0.0] * members, *range(1, strangers + 1)], dtype=torch.float64)
        for model, of_users in losses.items()
    }
    ids = [[i] for i in range(users + members + strangers)]
    sides = Sides(ids[:users], ids[users : users + members], range(users, users + members), ids[users + members :])
    scores = _scores(recipe, **{model: values.sqrt()[:, None] for model, values in known.items()})
    return forgetting(scores, sides, None, Thresholds(**more))


def test_several_users_who_all_stand_a_little_too_high_fail_together() -> None:
    """p from 0.017 to 0.05, not one of them flagged: by their rank sum no chance."""
    gate = _placed(before=[0.0] * 6, after=[1.5, 2.5, 3.5, 4.5, 5.5, 5.2])
    assert max(gate.numbers["p_remembered"]) <= 0.05
    assert min(gate.numbers["p_remembered"]) > gate.numbers["alpha_each_tail"]
    assert gate.outcome == "failed"
    assert "6 users together still look like members" in gate.sentence
    hidden = _placed(before=[0.0] * 6, after=[119.5, 118.5, 117.5, 116.5, 115.5, 114.5])
    assert "6 users together stand out as forgotten" in hidden.sentence
    spread = _placed(before=[0.0] * 6, after=[1.5, 20.5, 40.5, 80.5, 100.5, 60.5])
    assert spread.outcome == "passed"


def test_a_user_who_stands_high_and_came_less_than_half_the_way_raises_a_doubt() -> None:
    """p = 0.033, above the level of 0.01, and the unchanged model would have failed: the way says that she stayed."""
    gate = _placed(before=[0.0], after=[3.5])
    assert gate.numbers["unchanged_would_fail"]
    assert gate.outcome == "inconclusive"
    assert "less than half the way" in gate.sentence
    assert _placed(before=[0.0], after=[10.5]).outcome == "passed"  # p = 0.09: as high stands many a stranger


def test_of_many_users_as_many_may_stand_high_as_chance_explains() -> None:
    lucky = [3.5, *(float(5 * k) + 0.5 for k in range(3, 23))]
    assert _placed(before=[0.0] * 21, after=lucky).outcome == "passed"


def test_a_doubt_about_a_forgotten_user_is_as_seldom_as_stated() -> None:
    """All 121 ranks of one user, each as likely as the other if she is a stranger: 6 of them are doubted or failed."""
    outcomes = [_placed(before=[0.0], after=[k + 0.5]).outcome for k in range(121)]
    assert outcomes[:6] == ["failed"] + ["inconclusive"] * 5
    assert outcomes[6:] == ["passed"] * 114 + ["failed"]


@pytest.mark.parametrize("people", [slice(0, 2), slice(2, 8), slice(8, 10)], ids=["user", "members", "stranger"])
def test_a_statistic_that_is_no_number_is_a_failure_on_every_side(people: slice) -> None:
    recipe, sides, model, kept = _people(strangers=120)
    kept.outputs[3, people] = math.nan
    gate = forgetting(_scores(recipe, before=model, after=model + 0.1), sides, kept, Thresholds())
    assert gate.outcome == "failed"
    assert "not numbers" in gate.sentence


def test_a_handful_of_members_is_no_positive_control() -> None:
    """0.8^13 = 0.055: even if all 13 are recognised, a power of 0.8 is not shown at 0.05; with 14 it is."""
    assert _placed(before=[0.0], after=[60.5], members=14).outcome == "passed"
    few = _placed(before=[0.0], after=[60.5], members=13)
    assert few.outcome == "inconclusive"
    assert "13 members are no positive control" in few.sentence
    assert few.numbers["power_at_least"] == pytest.approx(0.05 ** (1 / 13))


def test_the_power_that_lets_a_hidden_user_pass_is_a_lower_bound() -> None:
    """Four fifths recognised of 20 may be luck; the user was no more visible than a stranger with p = 0.25."""
    gate = _placed(before=[0.0, 30.5], after=[60.5, 61.5], members=20, power_asked=0.87)
    assert gate.numbers["power_on_members"] == 1.0
    assert (gate.outcome, gate.numbers["power_at_least"]) == ("inconclusive", pytest.approx(0.05 ** (1 / 20)))


@pytest.mark.parametrize("side", ["users", "members", "strangers"])
def test_people_without_samples_are_refused_on_every_side(side: str) -> None:
    sides = Sides([[0]], [[1], [2]], [1, 2], [[3]])
    sides.require_samples()
    dataclasses.replace(sides, members=[], strangers=[]).require_samples()  # none is told, and no yardstick
    with pytest.raises(NothingToForget, match="entry without samples"):
        dataclasses.replace(sides, **{side: [[7], []]}).require_samples()


def test_retained_samples_listed_twice_are_refused() -> None:
    with pytest.raises(NothingToForget, match="1 of 3 retained_ids are doubles"):
        Sides([[0]], [[1]], [1, 2, 2], [[3]]).require_samples()


def test_the_gate_reports_distances_to_the_judges_and_areas_without_deciding_by_them() -> None:
    numbers = _remembered(before=9.0, after=0.0).numbers
    assert numbers["reference_distance_ratio"] < numbers["reference_distance_ratio_before"]
    assert (numbers["statistic"], numbers["judges"]) == ("calibrated", 3)
    assert numbers["auc_members_before"] == numbers["auc_members_after"] == 1.0
    assert numbers["power_on_members"] + numbers["beta_on_members"] == 1.0


def test_at_most_300_statistics_of_each_side_are_shown_in_order_and_without_ids() -> None:
    recipe, sides, model, kept = _people(strangers=500)
    shown = forgetting(_scores(recipe, before=model, after=model), sides, kept, Thresholds()).numbers
    strangers = shown["statistics_after"]["strangers"]
    assert len(strangers) == 300
    assert strangers == sorted(strangers)


# --- G5 ---


def test_the_distance_ratio_of_classes_is_the_mean_kl_over_the_floor() -> None:
    draws = torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = special.softmax(draws.numpy(), axis=-1)
    far = sum(stats.entropy(p[r], p[0], axis=1).mean() for r in (1, 2, 3)) / 3
    floor = sum(stats.entropy(p[a], p[b], axis=1).mean() for a in (1, 2, 3) for b in (1, 2, 3) if a != b) / 6
    assert distance_ratio(draws[0], list(draws[1:]), "softmax") == pytest.approx((far / floor, floor))


def test_one_more_retraining_is_as_far_as_retrainings_are() -> None:
    draws = torch.randn(9, 4000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rho, floor = distance_ratio(draws[0], list(draws[1:]), "plain")
    assert (rho, floor) == pytest.approx((1.0, 2.0), rel=0.03)


def test_the_oracle_passes_a_retraining_fails_a_stranger_and_doubts_one_user() -> None:
    draws = torch.randn(5, 400, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sizes = [10] * 40
    near = oracle(draws[0], list(draws[1:]), sizes=sizes, law="plain")
    far = oracle(4 * draws[0], list(draws[1:]), sizes=sizes, law="plain")
    assert [near.outcome, far.outcome] == ["passed", "failed"]
    low, high = near.numbers["interval_95"]
    assert low < near.numbers["distance_ratio"] < high
    assert oracle(draws[0], list(draws[1:]), sizes=[400], law="plain").outcome == "inconclusive"
    assert oracle(draws[0], list(draws[1:3]), sizes=sizes, law="plain").outcome == "inconclusive"
    with pytest.raises(TooFewRetrainings):
        oracle(draws[0], [draws[1]], sizes=sizes, law="plain")


def test_retrainings_that_agree_to_the_bit_leave_no_room() -> None:
    same = torch.ones(6, 2)
    assert distance_ratio(same, [same, same], "plain") == (1.0, 0.0)
    assert distance_ratio(2 * same, [same, same], "plain") == (math.inf, 0.0)


# --- the verdict ---


def test_what_was_not_run_follows_from_what_was() -> None:
    def left_out(**numbers: Any) -> str:
        gate = Gate("G3 forgetting", "passed", "", numbers)
        return " ".join(Verdict("passed", "A2", "", (gate,)).not_run)

    assert "relearning" in left_out(statistic="raw")
    assert "LiRA, RMIA" in left_out(statistic="raw")
    assert "relearning" not in left_out(statistic="calibrated", resurrection={})
    assert "LiRA, RMIA" not in left_out(statistic="calibrated")
    assert "relearning" in " ".join(Verdict("failed", None, "", ()).not_run)


def test_a_side_without_samples_is_refused() -> None:
    with pytest.raises(NothingToForget, match="users"):
        Sides([[]], [[1]], [1], []).require_samples()
