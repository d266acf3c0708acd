"""The objective against plain autograd, and every refusal by its sentence."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.unit.unlearning.problems import PROBLEMS, Toy, dense_gradient
from workers.unlearning import (
    BadSetting,
    NonFinite,
    NotCovered,
    NothingToForget,
    RecipeMisbehaves,
    WeightsDoNotFit,
    residual,
    retrain,
)
from workers.unlearning.calibration import predict
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


class Wavy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.randn(2, 3, dtype=torch.complex64))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(self.wave.dtype) @ self.wave).abs().to(x.dtype))


class Float32(Toy):
    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self._make()


def test_complex_parameters_are_refused_before_half_of_each_is_lost() -> None:
    toy = Float32(Wavy, _x.float(), _y)
    with pytest.raises(NotCovered, match=r"\['wave'\] are no real numbers"):
        Model(toy, toy.weights)

    class Still(Float32):
        def moves(self, name: str) -> bool:
            return name != "wave"

    still = Still(Wavy, _x.float(), _y)
    model = Model(still, still.weights)
    assert torch.equal(model.state(model.theta_P)["wave"], still.weights["wave"])


class Counts(nn.Linear):
    """Counts what it was trained on, in whole numbers."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += torch.bincount(super().forward(x).argmax(-1), minlength=2)
        return super().forward(x)


def test_whole_numbers_that_training_counts_are_refused_and_a_count_of_batches_is_not() -> None:
    toy = Toy(Counts, _x, _y)
    with pytest.raises(NotCovered, match=r"\['seen'\]"):
        check_coverage(Objective(Model(toy, toy.weights), range(6)))
    check_coverage(Objective(Model(toy, toy.weights, frozen_buffers=["seen"]), range(6)))
    normed = Toy(_normed, _x, _y)
    partly = Model(normed, normed.weights, frozen_buffers=["1.running_mean", "1.running_var"])
    check_coverage(Objective(partly, range(6)))


class InTuple(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # the owner's habit
        return super().forward(x), x


class InDict(nn.Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # the owner's habit
        return {"logits": super().forward(x)}


@pytest.mark.parametrize(("module", "kind"), [(InTuple, "tuple"), (InDict, "dict")])
def test_outputs_that_are_no_tensor_are_refused_with_a_remedy(module: type[nn.Linear], kind: str) -> None:
    toy = Toy(lambda: module(2, 2), _x, _y)
    with pytest.raises(RecipeMisbehaves, match=f"returned a {kind}: return one tensor"):
        residual(toy, toy.weights, range(6))
    with pytest.raises(RecipeMisbehaves, match=f"returned a {kind}: return one tensor"):
        predict(toy, toy.weights, range(6))


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def test_state_that_is_no_tensor_is_refused_with_a_remedy() -> None:
    toy = Toy(lambda: Extra(2, 2), _x, _y)
    with pytest.raises(NotCovered, match=r"_extra_state.*make them buffers"):
        Model(toy, {"weight": torch.zeros(2, 2).double(), "bias": torch.zeros(2).double()})


@pytest.mark.parametrize(
    ("returned", "sentence"), [(None, "train\\(\\) returned NoneType"), (Extra(2, 2).double(), "make them buffers")]
)
def test_a_training_that_returns_no_module_of_tensors_is_told_so(returned: object, sentence: str) -> None:
    class Trained(Toy):
        def train(self, *_: object, **__: object) -> object:
            return returned

    with pytest.raises((RecipeMisbehaves, NotCovered), match=sentence):
        retrain(Trained(_two_layers, _x, _y), range(6), seed=0)


@pytest.mark.parametrize("inputs", [[_x], {"x": None}, None])
def test_inputs_that_are_no_tensors_are_refused(inputs: object) -> None:
    class Odd(Toy):
        def fetch(self, sample_ids: Sequence[int]) -> tuple[object, Tensor]:  # type: ignore[override]  # the mistake
            return inputs, _y[list(sample_ids)]

    toy = Odd(_two_layers, _x, _y)
    with pytest.raises(RecipeMisbehaves, match="a tuple or dict of tensors"):
        residual(toy, toy.weights, range(6))


def test_chunks_of_no_samples_are_refused() -> None:
    toy = PROBLEMS["tied"]()
    for size in (0, -1):
        with pytest.raises(BadSetting, match="batch_size"):
            residual(toy, toy.weights, range(6), batch_size=size)
