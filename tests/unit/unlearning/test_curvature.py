"""The operator is compared with a dense matrix built from full jacobians, never with itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.unlearning.problems import PROBLEMS, Toy, dense_ggn
from workers.unlearning.curvature import GaussNewton
from workers.unlearning.errors import NotCovered
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective
from workers.unlearning.sketch import sketched_inverse
from workers.unlearning.testing import Classification


def _objective(toy: Toy, batch_size: int) -> Objective:
    _, targets = toy.fetch(slice_all(toy))
    return Objective(Model(toy, toy.weights), range(len(targets)), batch_size=batch_size)


def slice_all(toy: Toy) -> list[int]:
    return list(range(len(toy._targets)))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("batch_size", [4, 1000])
def test_the_product_equals_the_dense_ggn(problem: str, batch_size: int) -> None:
    toy = PROBLEMS[problem]()
    objective = _objective(toy, batch_size)
    dense = dense_ggn(toy, len(objective))
    operator = GaussNewton(objective, objective.model.theta_P)
    for seed in range(3):
        v = torch.randn(len(dense), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(operator.product(v), dense @ v, rtol=1e-9, atol=1e-9)


def test_products_from_tapes_are_the_first_one_at_any_budget_and_count_the_same() -> None:
    toy = PROBLEMS["convolution"]()
    dense = dense_ggn(toy, 14)
    v = torch.randn(len(dense), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for keep_bytes, tapes in ((1 << 28, 4), (0, 0)):
        objective = Objective(Model(toy, toy.weights), range(14), batch_size=4, keep_bytes=keep_bytes)
        operator = GaussNewton(objective, objective.model.theta_P)
        for factor in (1.0, 2.0, -1.0, 0.5):
            torch.testing.assert_close(operator.product(factor * v), factor * (dense @ v), rtol=1e-9, atol=1e-9)
        assert len(operator._tapes) == tapes
        assert objective.cost.forward_backwards == 4 * 2 * 14


class Detaching(torch.autograd.Function):
    """An owner's operation x ↦ 3x with both derivatives, whose backward cannot be differentiated itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:
        return 2 * slope + slope.detach()

    @staticmethod
    def jvp(ctx: object, tangent: Tensor) -> Tensor:
        return 3 * tangent


def test_a_tape_that_contradicts_forward_mode_is_not_used() -> None:
    class Tripling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Detaching.apply(super().forward(x))

    toy = Toy(lambda: Tripling(2, 3), torch.ones(4, 2).double(), torch.tensor([0, 1, 2, 0]))
    objective = _objective(toy, 4)
    operator = GaussNewton(objective, objective.model.theta_P)
    v = torch.arange(9, dtype=torch.float64)
    first = operator.product(v)
    assert float(first.norm()) > 0
    assert all(torch.equal(operator.product(v), first) for _ in range(3))


class Normed(nn.Sequential):
    """Every layer with statistics or groups, on sequences of 6 steps and 2 channels."""

    def __init__(self) -> None:
        layers = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3)
        super().__init__(*layers)
        self[1].running_mean.add_(0.3)
        self[1].running_var.mul_(1.7)


class Heads(nn.Module):
    """Multi-head attention on its own, with weights asked for (the path that is not fused)."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.read = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.attend(x, x, x)[0].mean(1))


class TiedTokens(nn.Module):
    """A language model in small: the output layer is the embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.mix, self.read = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.read.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(torch.tanh(self.mix(self.token(ids))))


class Masked(Toy):
    """A sample is a sequence; its loss is the sum over the tokens that count, target −1 marks the others."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        by_token = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-1)
        return by_token.reshape(targets.shape).sum(1)


class YesNo(Toy):
    """Several independent yes-or-no answers per sample."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def _whole(*shape: int, below: int, least: int = 0) -> Tensor:
    return torch.randint(least, below, shape, generator=torch.Generator().manual_seed(10))


def _tokens_lambda(toy: Toy, sample: int, z: Tensor) -> Tensor:
    """diag(p) − ppᵀ for each token that counts, zero for each that does not."""
    counts = toy.fetch([sample])[1][0] >= 0
    blocks = [(torch.diag(p) - torch.outer(p, p)) * c for p, c in zip(z.reshape(-1, 5).softmax(1), counts, strict=True)]
    return torch.block_diag(*blocks)


def _classes_lambda(_toy: Toy, _sample: int, z: Tensor) -> Tensor:
    p = z.softmax(0)
    return torch.diag(p) - torch.outer(p, p)


def _yes_no_lambda(_toy: Toy, _sample: int, z: Tensor) -> Tensor:
    return torch.diag(z.sigmoid() * (1 - z.sigmoid()))


MORE = {
    "batch, group norm and conv1d": (lambda: Toy(Normed, _draw(9, 2, 6), _whole(9, below=3)), _classes_lambda),
    "attention heads": (lambda: Toy(Heads, _draw(9, 3, 4), _whole(9, below=3)), _classes_lambda),
    "masked sequences, tied embedding": (
        lambda: Masked(TiedTokens, _whole(9, 4, below=5), _whole(9, 4, below=5, least=-1)),
        _tokens_lambda,
    ),
    "yes or no": (lambda: YesNo(lambda: nn.Linear(4, 3), _draw(9, 4), _whole(9, 3, below=2).double()), _yes_no_lambda),
}


@pytest.mark.parametrize("kind", MORE)
def test_the_product_is_the_sum_of_jacobians_around_the_losses_own_hessian(kind: str) -> None:
    make, middle = MORE[kind]
    toy = make()
    objective = _objective(toy, 4)
    module = toy.build().eval()
    parameters, dense = list(module.parameters()), 0.0
    for sample in range(9):
        z = module(toy.fetch([sample])[0])[0].flatten()
        rows = [torch.autograd.grad(z_c, parameters, retain_graph=True) for z_c in z]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        dense = dense + jacobian.T @ middle(toy, sample, z.detach()) @ jacobian
    operator = GaussNewton(objective, objective.model.theta_P)
    for v in torch.eye(len(dense), dtype=torch.float64)[::5]:
        torch.testing.assert_close(operator.product(v), dense @ v, rtol=1e-9, atol=1e-9)


def test_a_product_counts_two_forward_backwards_per_sample() -> None:
    objective = _objective(PROBLEMS["tied"](), 5)
    GaussNewton(objective, objective.model.theta_P).product(torch.ones_like(objective.model.theta_P))
    assert objective.cost.forward_backwards == 2 * len(objective)


class Doubled(torch.autograd.Function):
    """An owner's operation with a backward and no forward-mode derivative."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, slope: torch.Tensor) -> torch.Tensor:
        return 2 * slope


def test_an_operation_without_forward_mode_is_refused() -> None:
    class Doubling(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Doubled.apply(super().forward(x))

    toy = Toy(lambda: Doubling(2, 3), torch.ones(4, 2).double(), torch.tensor([0, 1, 2, 0]))
    objective = _objective(toy, 4)
    with pytest.raises(NotCovered, match="no forward-mode derivative, renewal or retraining do without"):
        GaussNewton(objective, objective.model.theta_P).product(torch.ones_like(objective.model.theta_P))


def test_a_module_that_cannot_be_batched_goes_without_a_preconditioner() -> None:
    objective = _objective(PROBLEMS["recurrent"](), 8)
    assert sketched_inverse(objective, objective.model.theta_P, groups=4, shift=1.0, seed=0) is None


@pytest.mark.parametrize("problem", ["convolution", "tied", "embedding", "bilinear"])
def test_a_sketch_with_a_group_per_sample_inverts_a_scalar_curvature_or_stays_positive(problem: str) -> None:
    """With one sample per group and one output per sample the sketch has no cross terms: it is the exact inverse."""
    toy = PROBLEMS[problem]()
    objective = _objective(toy, 7)
    size = len(objective.model.theta_P)
    precondition = sketched_inverse(objective, objective.model.theta_P, groups=len(objective), shift=0.3, seed=0)
    assert precondition is not None
    inverse = torch.stack([precondition(e) for e in torch.eye(size, dtype=torch.float64)])
    torch.testing.assert_close(inverse, inverse.T, rtol=0, atol=1e-10)
    assert float(torch.linalg.eigvalsh(inverse).min()) > 0
    if problem == "embedding":
        dense = dense_ggn(toy, len(objective)) + 0.3 * torch.eye(size, dtype=torch.float64)
        torch.testing.assert_close(inverse @ dense, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-9)


def test_sketches_average_to_the_curvature() -> None:
    """E[UᵀU] = G also for classes, where Λ has a root to be found: 60 sketches come within 15 % in norm."""
    recipe = Classification(users=3, each=4, hidden=0, features=3)
    weights = {name: tensor.clone() for name, tensor in recipe.build().state_dict().items()}
    objective = Objective(Model(recipe, weights), range(12))
    size, mean = len(objective.model.theta_P), 0.0
    eye = torch.eye(size, dtype=torch.float64)
    for seed in range(60):
        precondition = sketched_inverse(objective, objective.model.theta_P, groups=12, shift=1.0, seed=seed)
        assert precondition is not None
        inverse = torch.stack([precondition(e) for e in eye])
        mean = mean + (torch.linalg.inv(inverse) - eye) / 60
    operator = GaussNewton(objective, objective.model.theta_P)
    exact = torch.stack([operator.product(e) for e in eye])
    assert float((mean - exact).norm() / exact.norm()) < 0.15


def test_no_sketch_is_made_without_weight_decay() -> None:
    objective = _objective(PROBLEMS["tied"](), 5)
    assert sketched_inverse(objective, objective.model.theta_P, groups=4, shift=0.0, seed=0) is None
