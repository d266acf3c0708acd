"""The projection against its own normal equations, solved densely, and its promises to the samples it may not touch."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from tests.unit.unlearning.problems import Toy
from workers.unlearning import ekfac
from workers.unlearning.errors import MissingReferences, NothingToForget
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective
from workers.unlearning.projection import Projection, project
from workers.unlearning.references import References
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
