"""Batch statistics after a step, against plain means and variances and torch's own pass for averaged weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from tests.unit.unlearning.problems import Toy
from workers.unlearning import NotCovered, Settings, forget
from workers.unlearning.model import Model
from workers.unlearning.objective import Cost, Objective, check_coverage
from workers.unlearning.statistics import recompute

_draw = torch.Generator().manual_seed(0)
X = 3 + 2 * torch.randn(24, 2, generator=_draw, dtype=torch.float64)
Y = torch.randint(0, 2, (24,), generator=_draw)
ALL = {"samples": 100, "batch_size": 100, "seed": 0}


def _deep() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3), nn.BatchNorm1d(3))


def _toy(make: Callable[[], nn.Module]) -> tuple[Toy, Model]:
    toy = Toy(make, X, Y)
    return toy, Model(toy, toy.weights)


def test_mean_and_variance_are_those_of_the_retained_samples() -> None:
    toy, model = _toy(lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
    kept = list(range(5, 24))
    found = recompute(model, toy.weights, kept, **ALL, cost=Cost())
    torch.testing.assert_close(found["0.running_mean"], X[kept].mean(0))
    torch.testing.assert_close(found["0.running_var"], X[kept].var(0))
    assert int(found["0.num_batches_tracked"]) == 1


def test_several_batches_are_averaged_and_none_is_a_leftover_of_one_sample() -> None:
    """17 samples at 4 per batch are dealt as 4, 4, 3, 3, 3, and each batch weighs the same."""
    toy, model = _toy(lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
    found = recompute(model, toy.weights, range(17), samples=17, batch_size=4, seed=3, cost=Cost())
    order = torch.randperm(17, generator=torch.Generator().manual_seed(3))
    batches = [X[part] for part in (order[:4], order[4:8], order[8:11], order[11:14], order[14:])]
    torch.testing.assert_close(found["0.running_mean"], torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(found["0.running_var"], torch.stack([b.var(0) for b in batches]).mean(0))
    assert int(found["0.num_batches_tracked"]) == 5


def test_deep_statistics_are_those_of_torchs_pass_with_the_new_weights() -> None:
    _, model = _toy(_deep)
    state = model.state(model.theta_P + 0.1)
    theirs = _deep().double()
    theirs.load_state_dict(state)
    update_bn([X[:20]], theirs)
    found = recompute(model, state, range(20), **ALL, cost=Cost())
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_dropout_stays_off_while_statistics_are_estimated() -> None:
    toy, model = _toy(lambda: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Linear(2, 2)))
    found = recompute(model, toy.weights, range(24), **ALL, cost=Cost())
    torch.testing.assert_close(found["1.running_mean"], X.mean(0))


def test_the_cost_is_that_of_the_subsample_and_the_draw_follows_its_seed() -> None:
    toy, model = _toy(_deep)

    def mean(seed: int) -> Tensor:
        return recompute(model, toy.weights, range(24), samples=6, batch_size=3, seed=seed, cost=cost)["1.running_mean"]

    cost = Cost()
    first = mean(1)
    assert cost.forward_backwards == pytest.approx(6 / 3)
    assert torch.equal(first, mean(1))
    assert not torch.equal(first, mean(2))


def test_the_model_and_the_given_state_are_left_as_they_were() -> None:
    toy, model = _toy(_deep)
    state = toy.weights
    recompute(model, state, range(24), **ALL, cost=Cost())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.module.state_dict().items())
    assert not any(part.training for part in model.module.modules())


def test_one_retained_sample_has_no_variance() -> None:
    toy, model = _toy(_deep)
    with pytest.raises(NotCovered, match="1 retained samples"):
        recompute(model, toy.weights, [3], **ALL, cost=Cost())


def test_forgetting_reports_what_it_recomputed_and_leaves_nothing_of_the_forgotten_in_it() -> None:
    toy, _ = _toy(_deep)
    update = forget(toy, toy.weights, forget_ids=[0, 1, 2], retain_ids=range(3, 24), settings=Settings(tries=1))
    layers = [f"{layer}.{name}" for layer in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert list(update.report.recomputed_buffers) == layers
    first = nn.functional.linear(X[3:], update.weights["0.weight"], update.weights["0.bias"])
    torch.testing.assert_close(update.weights["1.running_mean"], first.mean(0))
    torch.testing.assert_close(update.weights["1.running_var"], first.var(0))


def test_a_recipe_may_freeze_buffers_and_so_may_the_caller() -> None:
    class Owner(Toy):
        frozen_buffers = ("1.running_mean", "1.running_var")

    toy = Owner(_deep, X, Y)
    more = ("4.running_mean", "4.running_var")
    settings = Settings(tries=1, frozen_buffers=more)
    update = forget(toy, toy.weights, forget_ids=[0], retain_ids=range(1, 24), settings=settings)
    assert update.report.frozen_buffers == (*Owner.frozen_buffers, *more)
    assert update.report.recomputed_buffers == ()
    assert all(torch.equal(update.weights[name], toy.weights[name]) for name in update.report.frozen_buffers)


def test_half_frozen_statistics_are_refused() -> None:
    toy = Toy(_deep, X, Y)
    model = Model(toy, toy.weights, frozen_buffers=["1.running_mean"])
    with pytest.raises(NotCovered, match=r"\['1.running_var'\]"):
        check_coverage(Objective(model, range(24)))


class Averaging(nn.Module):
    """A buffer of the owner's own that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.detach().mean(0)
        return self.read(x)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (Averaging, r"\['seen'\]"),
        (
            lambda: nn.Sequential(
                nn.Unflatten(1, (2, 1)),
                nn.Conv1d(2, 2, 1),
                nn.Upsample(scale_factor=2),
                nn.InstanceNorm1d(2, track_running_stats=True),
                nn.Flatten(),
            ),
            r"3\.running_mean",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2)),
            r"\['1'\] normalise by the batch",
        ),
    ],
)
def test_any_other_state_that_training_moves_is_still_refused(make: Callable[[], nn.Module], named: str) -> None:
    _, model = _toy(make)
    with pytest.raises(NotCovered, match=named):
        check_coverage(Objective(model, range(24)))
