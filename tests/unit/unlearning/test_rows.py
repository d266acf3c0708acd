"""Rows of a forgotten user: bit for bit a fresh draw, and the rest against the dense block that knows no such row."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.unit.unlearning.problems import Ratings, Toy
from workers.unlearning import NotCovered, RecipeMisbehaves, Settings, forget, residual
from workers.unlearning.curvature import GaussNewton
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective
from workers.unlearning.rows import check_unreached, erase_rows
from workers.unlearning.stability import StepControl

_draw = torch.Generator().manual_seed(4)
USERS, ITEMS = torch.arange(20) % 5, torch.randint(0, 6, (20,), generator=_draw)
STARS = torch.randn(20, 1, generator=_draw, dtype=torch.float64)
GONE = [i for i in range(20) if i % 5 == 2]
REST = [i for i in range(20) if i % 5 != 2]


class Rated(Toy):
    """Each user's ratings own the user's row; `build` draws from the caller's generator, as owners do."""

    def __init__(self) -> None:
        super().__init__(Ratings, {"user": USERS, "item": ITEMS}, STARS)

    def build(self) -> nn.Module:
        return self._make().double()

    def owned_rows(self, sample_ids: Sequence[int]) -> Mapping[str, Sequence[int]]:
        return {"user.weight": sorted({int(USERS[i]) for i in sample_ids})}


def _trained() -> dict[str, Tensor]:
    torch.manual_seed(11)
    return {name: tensor.clone() for name, tensor in Rated().build().state_dict().items()}


def _fresh(seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return Ratings().double().user.weight.detach()


def _dense_step(weights: Mapping[str, Tensor], r0: Tensor) -> Tensor:
    """Solve the retained system by hand on everything but the forgotten user's row, the row already drawn anew."""
    module = Ratings().double()
    module.load_state_dict(
        {**weights, "user.weight": weights["user.weight"].index_copy(0, torch.tensor([2]), _fresh()[2:3])}
    )
    parameters = list(module.parameters())
    theta = torch.cat([p.detach().flatten() for p in parameters])
    l2 = Toy.l2_per_sample * len(REST) + Toy.l2_total
    curvature, slope = l2 * torch.eye(len(theta), dtype=theta.dtype), l2 * theta
    for i in REST:
        z = module(USERS[[i]], ITEMS[[i]])[0, 0]
        row = torch.cat([g.flatten() for g in torch.autograd.grad(z, parameters)])
        curvature, slope = curvature + torch.outer(row, row), slope + float(z.detach() - STARS[i, 0]) * row
    others = [k for k in range(len(theta)) if k not in range(6, 9)]  # row 2 of three numbers
    step = torch.zeros_like(theta)
    step[others] = torch.linalg.solve(curvature[others][:, others], (r0 - slope)[others])
    return theta + step


def test_the_row_is_a_fresh_draw_bit_for_bit_and_the_rest_solves_the_block_without_it() -> None:
    recipe, weights = Rated(), _trained()
    r0 = residual(recipe, weights, range(20))
    settings = Settings(tolerance=1e-12, control=StepControl(accept_above=-1e9, max_function_step=1e9))
    update = forget(recipe, weights, forget_ids=GONE, retain_ids=REST, residual=r0, settings=settings)
    assert update.report.erased_rows == 1
    assert torch.equal(update.weights["user.weight"][2], _fresh()[2])
    found = torch.cat([update.weights[name].flatten() for name in ("user.weight", "item.weight", "bias.weight")])
    torch.testing.assert_close(found, _dense_step(weights, r0), rtol=1e-8, atol=1e-9)


def test_every_derivative_is_exactly_zero_where_a_row_is_held_still() -> None:
    recipe = Rated()
    model = erase_rows(Model(recipe, _trained()), {"user.weight": [2]}, seed=5)
    objective = Objective(model, range(20))
    still = torch.zeros(15 + 18 + 6, dtype=torch.bool)
    still[6:9] = True
    assert torch.equal(model.unflatten(model.theta_P)["user.weight"][2], _fresh(5)[2])
    assert not objective.gradient(model.theta_P)[still].any()
    assert objective.data_gradient(model.theta_P)[still].all()
    product = GaussNewton(objective, model.theta_P).product
    assert not product(torch.ones(39, dtype=torch.float64))[still].any()
    assert not product(still.double()).any()


def test_erasing_leaves_the_callers_randomness_and_the_other_rows_alone() -> None:
    weights = _trained()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = erase_rows(Model(Rated(), weights), {"user.weight": [2, 4]})
    assert torch.equal(torch.get_rng_state(), before)
    state = model.state(model.theta_P)
    assert torch.equal(state["user.weight"][[0, 1, 3]], weights["user.weight"][[0, 1, 3]])
    assert torch.equal(state["item.weight"], weights["item.weight"])


def test_a_recipe_that_owns_no_rows_of_these_samples_is_an_ordinary_one() -> None:
    class Nobody(Rated):
        def owned_rows(self, sample_ids: Sequence[int]) -> Mapping[str, Sequence[int]]:
            return {"user.weight": []}

    report = forget(Nobody(), _trained(), forget_ids=GONE, retain_ids=REST, settings=Settings(tries=1)).report
    assert report.erased_rows == 0


def test_rows_that_retained_samples_reach_are_not_erased_as_the_forgotten_ones_own() -> None:
    class Greedy(Rated):
        def owned_rows(self, sample_ids: Sequence[int]) -> Mapping[str, Sequence[int]]:
            return {"user.weight": [1, 2]}

    with pytest.raises(RecipeMisbehaves, match=r"\{'user.weight': 3\}"):
        forget(Greedy(), _trained(), forget_ids=GONE, retain_ids=REST)


def test_looking_for_others_on_a_row_costs_one_gradient() -> None:
    objective = Objective(erase_rows(Model(Rated(), _trained()), {"user.weight": [2]}), REST)
    check_unreached(objective)
    assert objective.cost.forward_backwards == len(REST)


@pytest.mark.parametrize(
    ("owned", "fact"),
    [
        ({"users.weight": [1, 2]}, "users.weight, which is no parameter; it gave 2 rows"),
        ({"user.weight": [1, 5, -1]}, "3 rows of user.weight, which has 5: 2 outside it, 0 double"),
        ({"user.weight": [1, 1]}, "0 outside it, 1 double"),
    ],
)
def test_rows_that_do_not_exist_are_refused_with_their_number(owned: dict[str, list[int]], fact: str) -> None:
    with pytest.raises(RecipeMisbehaves, match=fact):
        erase_rows(Model(Rated(), _trained()), owned)


def test_rows_of_a_parameter_that_does_not_move_are_refused() -> None:
    class ItemsOnly(Rated):
        def moves(self, name: str) -> bool:
            return name.startswith("item")

    with pytest.raises(NotCovered, match=r"2 rows of user\.weight"):
        erase_rows(Model(ItemsOnly(), _trained()), {"user.weight": [0, 2]})


def test_a_tied_row_is_erased_under_both_its_names() -> None:
    class TiedTables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Embedding(4, 2), nn.Embedding(4, 2)
            self.right.weight = self.left.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) * self.right(x)

    toy = Toy(TiedTables, torch.tensor([0, 1, 2, 3]), torch.zeros(4, 2).double())
    weights = {name: tensor + 1 for name, tensor in toy.weights.items()}
    state = (model := erase_rows(Model(toy, weights), {"right.weight": [3]})).state(model.theta_P)
    assert torch.equal(state["left.weight"][3], toy.weights["left.weight"][3])
    assert torch.equal(state["left.weight"], state["right.weight"])
