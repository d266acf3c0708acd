"""Settings that mean nothing and sets that only look apart: refused where they are made, naming the field."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from workers.unlearning import BadSetting, NothingToForget, Projection, Renewal, Settings, forget, residual, retrain
from workers.unlearning.bounds import plain_ids
from workers.unlearning.calibration import divergence
from workers.unlearning.references import References, cross_fit
from workers.unlearning.renewal import ordinary_epoch
from workers.unlearning.stability import StepControl
from workers.unlearning.testing import Classification, Ridge


class Paced(Classification):
    lr, batch_size, epochs = 0.01, 4, 1.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Projection(products=0), "products"),
        (lambda: Projection(steps=0), "steps"),
        (lambda: Projection(slack=0.0), "slack"),
        (lambda: Projection(slack=-0.03), "slack"),
        (lambda: Projection(damping=-5.0), "damping"),
        (lambda: Projection(damping=math.nan), "damping"),
        (lambda: Projection(batch_size=-1), "batch_size"),
        (lambda: Projection(level="probs"), "level"),  # type: ignore[arg-type]  # the typo
        (lambda: Renewal(shrink=5.0), "shrink"),
        (lambda: Renewal(shrink=math.nan), "shrink"),
        (lambda: Renewal(share=-1.0), "share"),
        (lambda: Renewal(pull=-1.0), "pull"),
        (lambda: Renewal(level="mean"), "level"),  # type: ignore[arg-type]  # the typo
        (lambda: Settings(batch_size=0), "batch_size"),
        (lambda: Settings(tolerance=math.nan), "tolerance"),
        (lambda: Settings(tolerance=2.0), "tolerance"),
        (lambda: Settings(tries=0), "tries"),
        (lambda: Settings(max_products=0), "max_products"),
        (lambda: StepControl(max_function_step=math.nan), "max_function_step"),
        (lambda: StepControl(accept_above=math.nan), "accept_above"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(make: Callable[[], object], field: str) -> None:
    with pytest.raises(BadSetting, match=f"{field} is "):
        make()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("lr", math.nan), ("batch_size", 0), ("batch_size", 16.5), ("epochs", 0.0), ("epochs", math.inf)],
)
def test_a_pace_that_trains_nothing_is_refused_by_name(name: str, value: float) -> None:
    recipe = Paced(users=4, each=2, hidden=0)
    setattr(recipe, name, value)
    with pytest.raises(BadSetting, match=f"{name} is {value}"):
        ordinary_epoch(recipe, recipe.build().state_dict(), recipe.samples_of(0, 1), seed=0)


def test_words_with_a_typo_are_refused() -> None:
    found = References(torch.arange(2), torch.randn(2, 2, 3), folds=2, seed=0)
    with pytest.raises(BadSetting, match="law is 'Softmax'"):
        found.target([0], repeats=[0], level="draw", law="Softmax")  # type: ignore[arg-type]  # the typo
    with pytest.raises(BadSetting, match="level is 'probs'"):
        found.target([0], repeats=[0], level="probs", law="softmax")  # type: ignore[arg-type]  # the typo
    with pytest.raises(BadSetting, match="law is 'Plain'"):
        divergence(torch.zeros(2, 2), torch.zeros(2, 2), law="Plain")  # type: ignore[arg-type]  # the typo


RIDGE = Ridge(samples=20, features=4, seed=0)
EVERYONE = list(range(20))


@pytest.mark.parametrize(
    "twice", [list(torch.tensor([3, 4])), list(np.array([3, 4])), torch.tensor([3, 4]), np.array([3, 4])]
)
def test_sets_that_overlap_in_tensors_or_arrays_overlap(twice: object) -> None:
    with pytest.raises(NothingToForget, match="2 sample ids appear twice"):
        forget(RIDGE, RIDGE.solved(EVERYONE), forget_ids=twice, retain_ids=EVERYONE)  # type: ignore[arg-type]  # no ints


def test_ids_in_tensors_and_arrays_give_what_the_same_ints_do() -> None:
    weights, rest = RIDGE.solved(EVERYONE), EVERYONE[2:]
    expected = forget(RIDGE, weights, forget_ids=[0, 1], retain_ids=rest).weights["weight"]
    for ids in (torch.tensor([0, 1]), np.array([0, 1])):
        found = forget(RIDGE, weights, forget_ids=ids, retain_ids=np.array(rest))  # type: ignore[arg-type]  # no ints
        assert torch.equal(found.weights["weight"], expected)
    assert torch.equal(residual(RIDGE, weights, np.array(rest)), residual(RIDGE, weights, rest))  # type: ignore[arg-type]  # no ints


class Listening(Classification):
    """Keeps what its training was given."""

    heard: list[object]

    def train(self, sample_ids: object, **_: object) -> torch.nn.Module:
        self.heard = list(sample_ids)  # type: ignore[call-overload]
        return self.build()


def test_an_owners_training_gets_plain_ints() -> None:
    recipe = Listening(users=4, each=2, hidden=0)
    retrain(recipe, torch.tensor([1, 2]), seed=0)  # type: ignore[arg-type]  # no ints
    assert [type(i) for i in recipe.heard] == [int, int]
    cross_fit(recipe, [torch.tensor([0, 1]), np.array([2, 3])], folds=2, repeats=1)  # type: ignore[list-item]  # no ints
    assert [type(i) for i in recipe.heard] == [int, int]


def test_ids_that_are_no_whole_numbers_are_refused() -> None:
    with pytest.raises(NothingToForget, match="whole numbers"):
        plain_ids([1.5])  # type: ignore[list-item]  # the mistake


def test_a_residual_of_another_length_is_no_residual() -> None:
    for wrong in (torch.tensor([100.0]), torch.zeros(3)):
        with pytest.raises(BadSetting, match="the model moves 4 parameters"):
            forget(RIDGE, RIDGE.solved(EVERYONE), forget_ids=[0], retain_ids=EVERYONE[1:], residual=wrong)
