"""The objective against plain autograd, and every refusal by its sentence."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.unit.unlearning.problems import PROBLEMS, Toy, dense_gradient
from workers.unlearning import NonFinite, NotCovered, NothingToForget, RecipeMisbehaves, WeightsDoNotFit, residual
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective, check_coverage


def _all(toy: Toy) -> list[int]:
    return list(range(len(toy._targets)))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_gradient_equals_plain_autograd_at_any_chunk_size(problem: str, batch_size: int) -> None:
    toy = PROBLEMS[problem]()
    found = residual(toy, toy.weights, _all(toy), batch_size=batch_size)
    torch.testing.assert_close(found, dense_gradient(toy, _all(toy)), rtol=1e-9, atol=1e-9)


def test_the_gradient_is_the_slope_of_the_value() -> None:
    toy = PROBLEMS["attention"]()
    model = Model(toy, toy.weights)
    objective = Objective(model, _all(toy), batch_size=3)
    v = torch.randn(len(model.theta_P), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (objective.value(model.theta_P + 1e-5 * v) - objective.value(model.theta_P - 1e-5 * v)) / 2e-5
    assert slope == pytest.approx(float(objective.gradient(model.theta_P) @ v), rel=1e-6)


def test_dropout_is_off_so_two_evaluations_agree() -> None:
    toy = PROBLEMS["attention"]()
    objective = Objective(Model(toy, toy.weights), _all(toy))
    theta = objective.model.theta_P
    assert torch.equal(objective.losses(theta), objective.losses(theta))


def test_weight_decay_follows_the_number_of_samples_left() -> None:
    toy = PROBLEMS["tied"]()
    assert Objective(Model(toy, toy.weights), range(7)).l2 == pytest.approx(0.01 * 7 + 0.2)


def test_tied_weights_are_one_parameter_and_come_back_under_both_names() -> None:
    toy = PROBLEMS["tied"]()
    model = Model(toy, toy.weights)
    assert model.names == ["code.weight", "code.bias"]
    state = model.state(model.theta_P + 1)
    assert torch.equal(state["read.weight"], toy.weights["code.weight"] + 1)
    assert state["read.weight"].data_ptr() != state["code.weight"].data_ptr()


def test_tied_entries_that_disagree_do_not_fit() -> None:
    toy = PROBLEMS["tied"]()
    with pytest.raises(WeightsDoNotFit, match=r"ties \['read.weight'\]"):
        Model(toy, {**toy.weights, "read.weight": toy.weights["read.weight"] + 1})


def test_weights_that_do_not_fit_are_named() -> None:
    toy = PROBLEMS["bilinear"]()
    weights = {"weight": torch.zeros(3, 3, 3).double(), "beias": torch.zeros(3).double()}
    with pytest.raises(WeightsDoNotFit, match=r"missing \['bias'\], unexpected \['beias'\].*weight: \(3, 3, 3\)"):
        Model(toy, weights)


def test_weights_of_another_precision_do_not_fit() -> None:
    toy = PROBLEMS["bilinear"]()
    with pytest.raises(WeightsDoNotFit, match=r"torch\.float32 instead of"):
        Model(toy, {name: tensor.float() for name, tensor in toy.weights.items()})


def test_nan_in_the_weights_is_refused() -> None:
    toy = PROBLEMS["bilinear"]()
    with pytest.raises(NonFinite, match="bias"):
        Model(toy, {**toy.weights, "bias": torch.tensor([0.0, float("nan"), 0.0]).double()})


class OnlyHead(Toy):
    def moves(self, name: str) -> bool:
        return name.startswith("1.")


def _two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


_x, _y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 0, 1, 1, 0])


def test_only_the_parameters_that_move_are_in_the_vector() -> None:
    model = Model(OnlyHead(_two_layers, _x, _y), OnlyHead(_two_layers, _x, _y).weights)
    assert model.names == ["1.weight", "1.bias"]
    assert len(model.theta_P) == 8


def test_a_model_in_which_nothing_moves_is_refused() -> None:
    class Nothing(Toy):
        def moves(self, name: str) -> bool:
            return False

    with pytest.raises(NotCovered, match="no parameter"):
        Model(Nothing(_two_layers, _x, _y), Nothing(_two_layers, _x, _y).weights)


def test_a_moving_parameter_without_a_path_to_the_loss_is_refused_by_name() -> None:
    class Detached(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).detach())

    toy = Toy(lambda: Detached(nn.Linear(2, 3), nn.Linear(3, 2)), _x, _y)
    with pytest.raises(NotCovered, match=r"\['0.weight', '0.bias'\]"):
        check_coverage(Objective(Model(toy, toy.weights), range(6)))


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_batch_statistics_are_named_as_what_is_recomputed_after_the_step() -> None:
    toy = Toy(_normed, _x, _y)
    model = Model(toy, toy.weights)
    check_coverage(Objective(model, range(6)))
    assert model.recomputed_buffers == ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def test_batch_statistics_may_be_left_by_name() -> None:
    toy = Toy(_normed, _x, _y)
    model = Model(toy, toy.weights, frozen_buffers=["1.running_mean", "1.running_var"])
    check_coverage(Objective(model, range(6)))
    assert model.recomputed_buffers == ()
    assert torch.equal(model.state(model.theta_P + 1)["1.running_mean"], toy.weights["1.running_mean"])


def test_a_loss_that_is_already_averaged_is_refused() -> None:
    class Mean(Toy):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets).mean()

    toy = Mean(_two_layers, _x, _y)
    with pytest.raises(RecipeMisbehaves, match=r"shape \(\) for 6 samples"):
        residual(toy, toy.weights, range(6))


def test_a_fetch_that_loses_samples_is_refused() -> None:
    class Short(Toy):
        def fetch(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
            return _x[:3], _y[:3]

    toy = Short(_two_layers, _x, _y)
    with pytest.raises(RecipeMisbehaves, match="3 targets for 6 ids"):
        residual(toy, toy.weights, range(6))


def test_an_objective_over_no_samples_is_refused() -> None:
    toy = PROBLEMS["tied"]()
    with pytest.raises(NothingToForget):
        residual(toy, toy.weights, [])
