"""The projection against its own normal equations, solved densely, and its promises to the samples it may not touch."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from tests.unit.unlearning.problems import Toy
from workers.unlearning import ekfac
from workers.unlearning.errors import (
    FactorsDoNotFit,
    ForeignReferences,
    MissingReferences,
    NothingToForget,
    RecipeMisbehaves,
)
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective
from workers.unlearning.projection import Projection, project
from workers.unlearning.references import References
from workers.unlearning.renewal import renew
from workers.unlearning.stability import StepControl

DRAW = torch.Generator().manual_seed(3)
INPUTS = torch.randn(24, 5, generator=DRAW, dtype=torch.float64)
CLASSES = torch.randint(0, 3, (24,), generator=DRAW)
NUMBERS = torch.randn(24, 2, generator=DRAW, dtype=torch.float64)
FORGET, RETAIN = [0, 1, 2], list(range(3, 24))


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))


def references(outputs: int) -> References:
    values = torch.randn(2, 24, outputs, generator=torch.Generator().manual_seed(9))
    return References(torch.arange(24), values, folds=2, seed=0)


def fitted(recipe: Toy, weights: dict[str, Tensor]) -> ekfac.Ekfac:
    model = Model(recipe, weights)
    return ekfac.fit(Objective(model, RETAIN), model.theta_P, draws=4)


def test_many_products_solve_the_dense_normal_equations() -> None:
    recipe = Toy(net, INPUTS, CLASSES)
    weights, refs = recipe.weights, references(3)
    model, factors = Model(recipe, weights), fitted(recipe, weights)
    settings = Projection(products=400, slack=0.5, damping=0.3)
    update = project(
        recipe,
        weights,
        forget_ids=FORGET,
        retain_ids=RETAIN,
        references=refs,
        factors=factors,
        law="softmax",
        settings=settings,
    )
    assert update.report.complete
    moved_P = Model(recipe, update.weights).theta_P - model.theta_P

    names = model.names
    like = {name: tensor.detach() for name, tensor in model.module.named_parameters()}
    jacobian = jacrev(lambda p: functional_call(model.module, p, (INPUTS[FORGET],)))(like)
    J = torch.cat([jacobian[name].reshape(9, -1) for name in names], dim=1)
    target = refs.target(FORGET, repeats=refs.teachers, level="probabilities", law="softmax")
    p = target.softmax(-1)
    M = torch.block_diag(*[torch.diag(row) - torch.outer(row, row) for row in p])
    away = (target - functional_call(model.module, like, (INPUTS[FORGET],)).detach()).reshape(-1)
    eye = torch.eye(len(moved_P), dtype=torch.float64)
    E = torch.stack([factors.product(column) for column in eye], dim=1) * len(RETAIN) / factors.samples
    shift = 0.01 * len(RETAIN) + 0.2 + 0.3
    dense = torch.linalg.solve(E + shift * eye + J.T @ M @ J / 0.5, J.T @ M @ away / 0.5)
    torch.testing.assert_close(moved_P, dense, rtol=1e-4, atol=1e-7)


def test_a_linear_regression_lands_on_its_references_when_the_slack_is_small() -> None:
    recipe = Toy(lambda: torch.nn.Linear(5, 2), INPUTS, NUMBERS)
    refs = references(2)
    update = project(
        recipe,
        recipe.weights,
        forget_ids=FORGET,
        retain_ids=RETAIN,
        references=refs,
        factors=fitted(recipe, recipe.weights),
        law="plain",
        settings=Projection(products=200, slack=1e-7, damping=0.0, control=StepControl(max_function_step=1e9)),
    )
    said = INPUTS[FORGET] @ update.weights["weight"].T + update.weights["bias"]
    torch.testing.assert_close(
        said, refs.target(FORGET, repeats=refs.teachers, level="logits", law="plain"), atol=1e-3, rtol=0
    )


def test_only_the_teachers_are_read() -> None:
    recipe, refs = Toy(net, INPUTS, CLASSES), references(3)
    other = References(refs.sample_ids, refs.outputs.clone(), refs.folds, refs.seed)
    other.outputs[list(refs.judges)] += 5.0
    factors = fitted(recipe, recipe.weights)
    both = [
        project(
            recipe, recipe.weights, forget_ids=FORGET, retain_ids=RETAIN, references=r, factors=factors, law="softmax"
        )
        for r in (refs, other)
    ]
    assert all(torch.equal(a, both[1].weights[name]) for name, a in both[0].weights.items())


def test_the_cost_does_not_grow_with_the_retained_samples() -> None:
    recipe = Toy(net, INPUTS.repeat(40, 1), CLASSES.repeat(40))
    refs, factors = references(3), fitted(recipe, recipe.weights)
    costs = [
        project(
            recipe,
            recipe.weights,
            forget_ids=FORGET,
            retain_ids=range(3, n),
            references=refs,
            factors=factors,
            law="softmax",
            settings=Projection(products=1),
        ).report.forward_backwards
        for n in (24, 960)
    ]
    assert costs[0] == costs[1]


def test_the_given_weights_are_left_alone_and_missing_references_are_named() -> None:
    recipe, refs = Toy(net, INPUTS, CLASSES), references(3)
    weights = recipe.weights
    before = {name: tensor.clone() for name, tensor in weights.items()}
    arguments = {"retain_ids": RETAIN, "factors": fitted(recipe, weights), "law": "softmax"}
    project(recipe, weights, forget_ids=FORGET, references=refs, **arguments)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    with pytest.raises(MissingReferences, match="1 of 3"):
        project(recipe, weights, forget_ids=FORGET, references=refs.without([1]), **arguments)
    with pytest.raises(NothingToForget):
        project(recipe, weights, forget_ids=[5], references=refs, **arguments)


class Paced(Toy):
    """Half the squared error, of outputs (N,) or (N, 1) alike."""

    lr, batch_size, epochs = 0.01, 8, 20.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().reshape(len(targets), -1).sum(1)


def flat_and_column() -> list[tuple[Paced, References]]:
    """One regression twice: one number per sample, and a column of one number."""
    values = torch.randn(2, 24, 1, generator=torch.Generator().manual_seed(9))
    column = Paced(lambda: torch.nn.Sequential(torch.nn.Linear(5, 1)), INPUTS, NUMBERS[:, :1])
    flat = Paced(lambda: torch.nn.Sequential(torch.nn.Linear(5, 1), torch.nn.Flatten(0)), INPUTS, NUMBERS[:, 0])
    return [
        (flat, References(torch.arange(24), values[..., 0], folds=2, seed=0)),
        (column, References(torch.arange(24), values, folds=2, seed=0)),
    ]


def test_one_number_per_sample_is_projected_like_a_column_of_one() -> None:
    found = [
        project(
            recipe,
            recipe.weights,
            forget_ids=FORGET,
            retain_ids=RETAIN,
            references=refs,
            factors=fitted(recipe, recipe.weights),
            law="plain",
        ).weights
        for recipe, refs in flat_and_column()
    ]
    assert not torch.equal(found[0]["0.weight"], flat_and_column()[0][0].weights["0.weight"])
    torch.testing.assert_close(found[0], found[1])


def test_one_number_per_sample_is_renewed_like_a_column_of_one() -> None:
    found = [
        renew(
            recipe, recipe.weights, forget_ids=FORGET, retain_ids=RETAIN, references=refs, law="plain", seed=1
        ).weights
        for recipe, refs in flat_and_column()
    ]
    torch.testing.assert_close(found[0], found[1])


def test_references_of_another_shape_are_refused_and_not_stretched() -> None:
    recipe = Toy(net, INPUTS, CLASSES)
    arguments = {"forget_ids": FORGET, "retain_ids": RETAIN, "factors": fitted(recipe, recipe.weights)}
    for refs, law in ((references(2), "softmax"), (references(1), "plain")):
        with pytest.raises(ForeignReferences, match=r"the model's outputs \(3,\)"):
            project(recipe, recipe.weights, references=refs, law=law, **arguments)
    paced = Paced(net, INPUTS, NUMBERS.new_zeros(24, 3))
    with pytest.raises(ForeignReferences, match=r"the model's outputs \(3,\)"):
        renew(paced, paced.weights, forget_ids=FORGET, retain_ids=RETAIN, references=references(1), law="plain", seed=0)


def test_factors_of_another_model_are_refused() -> None:
    recipe = Toy(net, INPUTS, CLASSES)
    other = Toy(lambda: torch.nn.Linear(5, 3), INPUTS, CLASSES)
    with pytest.raises(FactorsDoNotFit, match="the model moves"):
        project(
            recipe,
            recipe.weights,
            forget_ids=FORGET,
            retain_ids=RETAIN,
            references=references(3),
            factors=fitted(other, other.weights),
            law="softmax",
        )


def test_a_solve_that_found_no_way_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A curvature that turned out indefinite ends the solve at zero, which agrees with its own prediction."""
    recipe = Toy(net, INPUTS, CLASSES)
    factors = fitted(recipe, recipe.weights)
    monkeypatch.setattr(factors, "product", lambda v_P: -1e6 * v_P)  # factors gone bad, not our code
    update = project(
        recipe,
        recipe.weights,
        forget_ids=FORGET,
        retain_ids=RETAIN,
        references=references(3),
        factors=factors,
        law="softmax",
    )
    assert update.report.step_norm == 0.0
    assert not update.report.complete
    assert "nothing moved" in str(update.report.reason)


def test_a_model_that_says_what_its_references_say_is_complete_where_it_is() -> None:
    recipe = Toy(lambda: torch.nn.Linear(5, 2, bias=False), INPUTS, NUMBERS)
    said = (INPUTS @ recipe.weights["weight"].T).float().expand(2, -1, -1)
    weights = {"weight": torch.zeros(2, 5).double()}
    for values, complete in ((0 * said, True), (said, True)):
        update = project(
            recipe,
            weights,
            forget_ids=FORGET,
            retain_ids=RETAIN,
            references=References(torch.arange(24), values.contiguous(), folds=2, seed=0),
            factors=fitted(recipe, weights),
            law="plain",
        )
        assert update.report.complete == complete, update.report.reason
        assert (update.report.step_norm == 0.0) == (not values.any())


class Shared(torch.nn.Module):
    """One row of an embedding for every fourth sample, whoever's it is."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = torch.nn.Embedding(4, 6), torch.nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x))


class Claims(Paced):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def owned_rows(self, sample_ids: list[int]) -> dict[str, list[int]]:
        return {"rows.weight": sorted({i % 4 for i in sample_ids})}


def test_rows_that_retained_samples_reach_are_not_erased_by_renewal_either() -> None:
    recipe = Claims(Shared, torch.arange(24) % 4, CLASSES)
    arguments = {"references": references(3), "law": "softmax", "seed": 0}
    with pytest.raises(RecipeMisbehaves, match="retained samples reach rows"):
        renew(recipe, recipe.weights, forget_ids=[0, 1], retain_ids=RETAIN, **arguments)
    alone = [i for i in RETAIN if i % 4 > 1]
    update = renew(recipe, recipe.weights, forget_ids=[0, 1], retain_ids=alone, **arguments)
    assert update.report.erased_rows == 2
