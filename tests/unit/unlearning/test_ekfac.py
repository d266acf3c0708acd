"""The factors are held against dense matrices: the GGN from full jacobians, its diagonal in the factors' own bases."""

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional

from tests.unit.unlearning.problems import PROBLEMS, Toy, dense_ggn
from workers.unlearning.cotangents import cotangents, rough_root, square_root
from workers.unlearning.ekfac import SAVE_EVERY, Block, Ekfac, fit
from workers.unlearning.errors import BadSetting, DamagedFile, FactorsDoNotFit, NotCovered, NotInvertible
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective
from workers.unlearning.solve import conjugate_gradients

pytestmark = pytest.mark.slow  # seconds each: make check leaves them to make test


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int, seed: int = 2) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def over_all(toy: Toy, *, batch_size: int = 5) -> Objective:
    return Objective(Model(toy, toy.weights), range(len(toy._targets)), batch_size=batch_size)


def fitted(objective: Objective, **options: object) -> Ekfac:
    return fit(objective, objective.model.theta_P, **options)  # type: ignore[arg-type]  # as given


def dense(operator: Callable[[Tensor], Tensor], size: int) -> Tensor:
    return torch.stack([operator(e) for e in torch.eye(size, dtype=torch.float64)], dim=1)


def directions(block: Block, objective: Objective) -> Tensor:
    """Write the block's basis vectors, one per eigenvalue, as columns over all parameters."""
    rows, columns = block.eigenvalues.shape
    left = torch.eye(rows, dtype=torch.float64) if block.left is None else block.left
    right = torch.eye(columns, dtype=torch.float64) if block.right is None else block.right
    matrices = torch.einsum("ia,jb->abij", left, right).reshape(-1, rows, columns)
    shapes = {name: p.shape for name, p in objective.model.unflatten(objective.model.theta_P).items()}
    parts = {name: torch.zeros(len(matrices), *shape, dtype=torch.float64) for name, shape in shapes.items()}
    start = 0
    for name in block.names:
        width = shapes[name].numel() // rows
        parts[name] = matrices[:, :, start : start + width].reshape(len(matrices), *shapes[name])
        start += width
    return torch.cat([parts[name].flatten(1) for name in objective.model.names], dim=1).T


def assert_eigenvalues_are_the_ggn_in_their_basis(factors: Ekfac, objective: Objective, ggn: Tensor) -> None:
    for block in factors.blocks:
        basis = directions(block, objective)
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
        expected = torch.einsum("pk,pq,qk->k", basis, ggn, basis).reshape(block.eigenvalues.shape)
        torch.testing.assert_close(block.eigenvalues, expected, rtol=1e-8, atol=1e-9)


def mlp() -> Toy:
    return Toy(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
        draw(13, 4),
        labels(13, classes=3),
    )


def normalised() -> Toy:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular"), nn.BatchNorm1d(3), nn.Tanh())
        net.extend([nn.Conv1d(3, 4, 2, stride=2, dilation=2, groups=1), nn.Conv1d(4, 4, 1, groups=2), nn.Flatten()])
        net.append(nn.Linear(8, 3))
        net[1].running_var = torch.tensor([0.5, 2.0, 1.0])
        return net

    return Toy(make, draw(9, 2, 6), labels(9, classes=3))


class Looks(nn.Module):
    """Attention called with a module of its own: torch runs its output projection without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inside(x, x, x, need_weights=False)[0].mean(1))


class Twice(nn.Module):
    """A weight that its own module uses once and the model once more behind its back; another module runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.again, self.plain = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.code(x))
        h = self.again(torch.tanh(self.again(h @ self.code.weight)))
        return self.plain(h)


class Words(nn.Module):
    """A language model: the same word may stand twice in a sentence, one word pads."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width, padding_idx=0)
        self.mix, self.read = nn.Linear(width, width), nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        return self.read(torch.tanh(self.mix(h + h.cumsum(1))))


class Sentences(Toy):
    """Cross entropy summed over the positions that are not masked, with a weight on each class."""

    def __init__(self, samples: int, positions: int, words: int, width: int) -> None:
        ids = labels(samples, positions + 1, classes=words)
        super().__init__(lambda: Words(words, width), ids[:, :-1], ids[:, 1:].masked_fill(ids[:, 1:] % 4 == 1, -100))
        self.weight_C = torch.linspace(0.5, 2, words, dtype=torch.float64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(outputs.transpose(1, 2), targets, weight=self.weight_C, reduction="none")
        return each.sum(1)

    def ggn(self) -> Tensor:
        """Sum JᵀΛJ with Λ the hessian of the loss by autograd, one sample at a time."""
        module, total = self.build(), 0.0
        parameters = dict(module.named_parameters())
        for ids, targets in zip(self._inputs, self._targets, strict=True):
            z = module(ids[None]).detach()
            middle = hessian(lambda u, t=targets: self.loss(u, t[None]).sum())(z).reshape(z.numel(), z.numel())
            jacobians = jacrev(lambda p, i=ids: functional_call(module, p, (i[None],)))(parameters)
            J = torch.cat([jacobians[name].reshape(z.numel(), -1) for name in parameters], dim=1).detach()
            total = total + J.T @ middle @ J
        return total


MODELS = {
    **PROBLEMS,
    "mlp": mlp,
    "normalised": normalised,
    "looks": lambda: Toy(Looks, draw(7, 3, 4), labels(7, classes=3)),
    "twice": lambda: Toy(Twice, draw(8, 4), labels(8, classes=3)),
}


def test_it_is_the_exact_ggn_of_a_linear_net_with_squared_errors() -> None:
    toy = Toy(lambda: nn.Linear(5, 3), draw(12, 5), draw(12, 3, seed=9))
    objective = over_all(toy)
    factors = fitted(objective, draws=4)
    torch.testing.assert_close(dense(factors.product, 18), dense_ggn(toy, 12), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_corrected_eigenvalues_are_the_ggn_along_their_own_directions(name: str) -> None:
    """Four orthogonal sign patterns leave no sampling noise with up to four outputs, so the comparison is exact."""
    toy = MODELS[name]()
    objective = over_all(toy)
    assert_eigenvalues_are_the_ggn_in_their_basis(fitted(objective, draws=4), objective, dense_ggn(toy, len(objective)))


def test_a_sequence_sums_over_its_positions_before_squaring() -> None:
    toy = Sentences(samples=6, positions=3, words=5, width=3)
    objective = over_all(toy, batch_size=4)
    factors = fitted(objective, draws=16)
    assert factors.kinds["table.weight"] == "embedding"
    assert_eigenvalues_are_the_ggn_in_their_basis(factors, objective, toy.ggn())


def test_bases_diagonalise_the_moments_of_inputs_and_of_output_gradients() -> None:
    toy = mlp()
    first, last = fitted(over_all(toy), draws=4).blocks
    with_ones = torch.cat([toy._inputs, torch.ones(13, 1, dtype=torch.float64)], dim=1)
    p = toy.build()(toy._inputs).softmax(1).detach()
    for basis, moments in ((first.right, with_ones.T @ with_ones), (last.left, torch.diag(p.sum(0)) - p.T @ p)):
        rotated = basis.T @ moments @ basis
        torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "diagonal"),
    [
        ("convolution", {"3.weight", "3.bias"}),
        ("tied", {"code.weight", "code.bias"}),
        ("embedding", set()),
        ("looks", {"inside.in_proj_weight", "inside.in_proj_bias", "inside.out_proj.weight", "inside.out_proj.bias"}),
        ("twice", {"code.weight", "code.bias", "again.weight", "again.bias"}),
        ("normalised", {"1.weight", "1.bias", "4.weight", "4.bias"}),
    ],
)
def test_what_does_not_factorise_gets_a_diagonal(name: str, diagonal: set[str]) -> None:
    kinds = fitted(over_all(MODELS[name]())).kinds
    assert {parameter for parameter, kind in kinds.items() if kind == "diagonal"} == diagonal


@pytest.mark.parametrize("name", MODELS)
def test_the_inverse_inverts_and_is_positive_definite(name: str) -> None:
    objective = over_all(MODELS[name]())
    factors, size = fitted(objective), len(objective.model.theta_P)
    inverse = factors.inverse(shift=0.3, scale=1.7)
    v = draw(size)
    torch.testing.assert_close(inverse(1.7 * factors.product(v) + 0.3 * v), v, rtol=0, atol=1e-10)
    matrix = dense(inverse, size)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_an_inverse_that_is_not_positive_definite_is_refused(shift: float, scale: float) -> None:
    with pytest.raises(NotInvertible, match="no positive definite"):
        fitted(over_all(mlp())).inverse(shift=shift, scale=scale)


@pytest.mark.parametrize("targets", [labels(60, classes=3), draw(60, 3, seed=7)], ids=["classes", "numbers"])
def test_it_saves_products_and_leads_to_the_same_solution(targets: Tensor) -> None:
    """Inputs spread over 2.5 decades in rotated axes: 323 products become 181 (classes), 708 become 222 (numbers)."""
    spread = torch.logspace(-1, 1.5, 8, dtype=torch.float64)
    inputs = (draw(60, 8) * spread) @ torch.linalg.qr(draw(8, 8, seed=5))[0]
    toy = Toy(lambda: nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3)), inputs, targets)
    factors, ggn, shift = fitted(over_all(toy, batch_size=60), draws=4), dense_ggn(toy, 60), 1e-2
    system, b = ggn + shift * torch.eye(len(ggn), dtype=torch.float64), draw(len(ggn))
    exact, needed = torch.linalg.solve(system, b), []
    for inverse in (None, factors.inverse(shift=shift)):
        found = conjugate_gradients(lambda v: system @ v, b, tolerance=1e-8, max_iterations=2000, precondition=inverse)
        torch.testing.assert_close(found.point_P, exact, rtol=0, atol=1e-6 * float(exact.abs().max()))
        needed.append(found.iterations)
    assert needed[1] < 0.65 * needed[0], needed


def test_factors_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    toy = PROBLEMS["embedding"]()
    objective = over_all(toy)
    factors = fitted(objective)
    factors.save(tmp_path / "f.safetensors", weights_digest="w", manifest_digest="m")
    again = Ekfac.load(tmp_path / "f.safetensors", Model(toy, toy.weights), weights_digest="w", manifest_digest="m")
    v = draw(len(objective.model.theta_P))
    assert torch.equal(again.product(v), factors.product(v))
    assert (again.samples, again.kinds) == (20, factors.kinds)
    assert [path.name for path in tmp_path.iterdir()] == ["f.safetensors"]


def test_factors_of_another_model_or_manifest_are_refused(tmp_path: Path) -> None:
    toy, path = mlp(), tmp_path / "f.safetensors"
    model, other = Model(toy, toy.weights), PROBLEMS["tied"]()
    fitted(over_all(toy)).save(path, weights_digest="w", manifest_digest="m")
    with pytest.raises(FactorsDoNotFit, match=r"weights of f.safetensors is w, asked for v"):
        Ekfac.load(path, model, weights_digest="v", manifest_digest="m")
    with pytest.raises(FactorsDoNotFit, match=r"manifest of f.safetensors is m, asked for n"):
        Ekfac.load(path, model, weights_digest="w", manifest_digest="n")
    with pytest.raises(FactorsDoNotFit, match="the model moves"):
        Ekfac.load(path, Model(other, other.weights), weights_digest="w", manifest_digest="m")
    path.write_bytes(b"torn")
    with pytest.raises(DamagedFile, match="not a safetensors file"):
        Ekfac.load(path, model, weights_digest="w", manifest_digest="m")


class Interrupted(Exception):
    pass


def power_cut(after: int) -> Callable[[float], None]:
    calls = iter(range(after))

    def told(_: float) -> None:
        if next(calls, None) is None:
            raise Interrupted

    return told


@pytest.mark.parametrize("after", [3, SAVE_EVERY + 1, 14, 2 * SAVE_EVERY + 3])
def test_an_interrupted_fit_continues_to_the_same_bits(tmp_path: Path, after: int) -> None:
    toy, path = PROBLEMS["convolution"](), tmp_path / "state.safetensors"
    whole = fitted(over_all(toy, batch_size=1), seed=7)
    with pytest.raises(Interrupted):
        fitted(over_all(toy, batch_size=1), seed=7, resume=path, progress=power_cut(after))
    objective = over_all(toy, batch_size=1)
    shares: list[float] = []
    resumed = fitted(objective, seed=7, resume=path, progress=shares.append)
    for mine, theirs in zip(resumed.blocks, whole.blocks, strict=True):
        assert torch.equal(mine.eigenvalues, theirs.eigenvalues)
    v = draw(len(objective.model.theta_P))
    assert torch.equal(resumed.product(v), whole.product(v))
    saved = after // SAVE_EVERY * SAVE_EVERY
    assert len(shares) == 28 - saved + 1
    assert shares[0] == pytest.approx((saved + 1) / 28)


def test_a_file_of_another_fit_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    fitted(over_all(mlp(), batch_size=1), seed=1, resume=path)
    with pytest.raises(FactorsDoNotFit, match="belongs to the fit"):
        fitted(over_all(mlp(), batch_size=1), seed=2, resume=path)


class Halves(nn.Sequential):
    """The first layer stays as it is, and so does a buffer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Head(Toy):
    def moves(self, name: str) -> bool:
        return name.startswith("2.")


def head(*, scale: float = 1.0, labelled: int = 2) -> Head:
    return Head(Halves, scale * draw(12, 6), labels(12, classes=3, seed=labelled))


@pytest.mark.parametrize("other", ["inputs", "targets", "0.weight", "scale"])
def test_a_fit_to_other_data_or_other_frozen_weights_is_not_resumed(tmp_path: Path, other: str) -> None:
    path, toy = tmp_path / "state.safetensors", head()
    ids, weights = range(12), head().weights
    fitted(Objective(Model(toy, weights), ids, batch_size=1), resume=path)
    changed = head(scale=2.0 if other == "inputs" else 1.0, labelled=3 if other == "targets" else 2)
    after = {name: tensor + (name == other) for name, tensor in weights.items()}
    with pytest.raises(FactorsDoNotFit, match="belongs to the fit"):
        fitted(Objective(Model(changed, after), ids, batch_size=1), resume=path)
    fitted(Objective(Model(toy, weights), ids, batch_size=1), resume=path)


def test_a_fit_without_draws_is_refused() -> None:
    with pytest.raises(BadSetting, match="draws is 0"):
        fitted(over_all(mlp()), draws=0)


def test_a_factors_file_in_which_a_bit_turned_over_is_refused(tmp_path: Path) -> None:
    toy, path = mlp(), tmp_path / "f.safetensors"
    fitted(over_all(toy)).save(path, weights_digest="w", manifest_digest="m")
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 0x80]), whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"f\.safetensors"):
            Ekfac.load(path, Model(toy, toy.weights), weights_digest="w", manifest_digest="m")
    save_file({"weight": torch.zeros(1)}, path, {"format": "ekfac-2", "weights": "w", "manifest": "m"})
    with pytest.raises(DamagedFile, match="carries no digest"):
        Ekfac.load(path, Model(toy, toy.weights), weights_digest="w", manifest_digest="m")


@pytest.mark.parametrize("wrong", [-1e-9, math.nan, math.inf])
def test_eigenvalues_that_no_curvature_has_are_refused(wrong: float) -> None:
    with pytest.raises(FactorsDoNotFit, match="1 of 1 blocks"):
        Ekfac([Block("diagonal", ("a",), torch.tensor([[1.0, wrong]]))], {"a": (2,)}, samples=1)
    with pytest.raises(FactorsDoNotFit, match="0 samples"):
        Ekfac([Block("diagonal", ("a",), torch.ones(1, 2))], {"a": (2,)}, samples=0)


def test_progress_rises_to_one_and_the_work_is_counted() -> None:
    """Two passes of a forward (1/3) and two reverse sweeps (2/3 each), and the first chunk's survey."""
    objective, shares = over_all(mlp()), []
    fitted(objective, draws=2, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert objective.cost.forward_backwards == pytest.approx(2 * 13 * (1 / 3 + 4 / 3) + 5 * (1 + 2 / 3))


def test_the_module_is_left_as_it_was() -> None:
    objective = over_all(PROBLEMS["attention"]())
    before = {name: tensor.clone() for name, tensor in objective.model.module.state_dict().items()}
    fitted(objective)
    after = objective.model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_hooks for module in objective.model.module.modules())


def test_only_what_moves_is_covered() -> None:
    class Head(Toy):
        def moves(self, name: str) -> bool:
            return name in {"0.bias", "2.weight"}

    like = mlp()
    toy = Head(like._make, like._inputs, like._targets)
    assert fitted(over_all(toy)).kinds == {"0.bias": "diagonal", "2.weight": "kronecker"}


def test_a_parameter_without_a_path_is_refused() -> None:
    class Idle(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.spare = nn.Linear(2, 2)

    with pytest.raises(NotCovered, match="no gradient path from the outputs to"):
        fitted(over_all(Toy(Idle, draw(6, 4), labels(6, classes=3))))


def test_blocks_that_leave_a_parameter_out_are_refused() -> None:
    ones = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(NotCovered, match="'b': 0"):
        Ekfac([Block("diagonal", ("a",), ones)], {"a": (2,), "b": (2,)}, samples=1)
    with pytest.raises(NotCovered, match="'a': 2"):
        Ekfac([Block("diagonal", ("a",), ones)] * 2, {"a": (2,)}, samples=1)


def test_wide_masked_sequences_are_fitted_without_factoring_their_curvature() -> None:
    """720 outputs per sample, one draw: the noise of the sum over 12 samples stays below 15 %, the law is unbiased."""
    toy = Sentences(samples=12, positions=6, words=120, width=3)
    objective = over_all(toy)
    factors = fitted(objective, draws=2)
    assert factors.kinds["read.weight"] == "kronecker"
    exact = toy.ggn()
    fitted_trace = sum(float(block.eigenvalues.sum()) for block in factors.blocks)
    assert fitted_trace == pytest.approx(float(exact.trace()), rel=0.15)
    assert float(factors.inverse(shift=0.1)(draw(len(exact))) @ draw(len(exact))) > 0


def half_square(z: Tensor, _: Tensor) -> Tensor:
    return 0.5 * z.square().flatten(1).sum(1)


def logistic(z: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(z, targets[:, None].expand_as(z).double(), reduction="none").sum(
        1
    )


def by_column(z: Tensor, targets: Tensor) -> Tensor:
    """Classes in the second dimension, as torch's cross entropy wants them, one position masked."""
    masked = targets[:, None].expand(-1, z.shape[2]).clone()
    masked[:, 1] = -100
    return functional.cross_entropy(z, masked, reduction="none", label_smoothing=0.1).sum(1)


def coupled(z: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(z, targets, reduction="none") + z.square().sum(1) + 0.5 * z.sum(1).square()


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(half_square, (3, 4, 150)), (logistic, (3, 600)), (by_column, (3, 90, 6)), (coupled, (3, 7)), (half_square, (3,))],
)
def test_roots_square_to_the_curvature(loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    z, targets = draw(*shape), labels(3, classes=3)
    if len(shape) == 1:
        loss = _of_a_vector
    toy = Toy(lambda: nn.Linear(1, 1), draw(3, 1), targets)
    toy.loss = loss  # type: ignore[method-assign]  # the recipe's loss is what varies here
    root = square_root(over_all(toy), z, targets)
    assert root is not None
    width = z[0].numel()
    units = torch.eye(width, dtype=torch.float64).reshape(width, *shape[1:])
    columns = torch.stack([root(unit.expand_as(z)).reshape(3, width) for unit in units], dim=2)
    for n in range(3):
        expected = hessian(lambda u, n=n: loss(u[None], targets[n : n + 1]).sum())(z[n]).reshape(width, width)
        torch.testing.assert_close(columns[n] @ columns[n].T, expected, rtol=1e-8, atol=1e-9)


def _of_a_vector(z: Tensor, _: Tensor) -> Tensor:
    return 1.5 * z.square()


def test_a_wide_curvature_of_no_known_law_keeps_its_diagonal_only() -> None:
    toy, z, targets = Toy(lambda: nn.Linear(1, 1), draw(3, 1), labels(3, classes=3)), draw(3, 600), labels(3, classes=3)
    toy.loss = lambda u, _: u.square().sum(1) + 0.5 * u.sum(1).square() / 600  # type: ignore[method-assign]  # as above
    objective = over_all(toy)
    assert square_root(objective, z, targets) is None
    diagonal = rough_root(objective, z, targets)(torch.ones_like(z)).square()
    torch.testing.assert_close(diagonal.mean(), torch.tensor(2 + 1 / 600).double(), rtol=0.05, atol=0)


def test_sign_patterns_are_orthogonal_over_a_power_of_two() -> None:
    z = draw(2, 3, 2)
    signs = torch.stack(list(cotangents(lambda s: s, z, draws=8, generator=torch.Generator().manual_seed(0))))
    gram = torch.einsum("dni,dnj->nij", signs.flatten(2), signs.flatten(2))
    assert torch.equal(gram, 8 * torch.eye(6, dtype=torch.float64).expand(2, 6, 6))


class Rank:
    """One of two threads that share the sums and run by turns, since torch's forward mode is one per process."""

    world = 2

    def __init__(self, rank: int, table: list[Tensor | None], meet: threading.Barrier, turn: threading.Lock) -> None:
        self.rank, self._table, self._meet, self._turn = rank, table, meet, turn

    def mine(self, ids: Sequence[int]) -> list[int]:
        return list(ids[: len(ids) // 3] if self.rank == 0 else ids[len(ids) // 3 :])

    def sum(self, part: Tensor) -> Tensor:
        self._table[self.rank] = part
        self._turn.release()
        self._meet.wait(timeout=60)
        total = self._table[0] + self._table[1]
        self._meet.wait(timeout=60)
        self._turn.acquire()
        return total


def test_two_ranks_fit_what_one_does() -> None:
    """Orthogonal signs leave no noise, so that the factors do not depend on who drew them."""
    single, found = over_all(mlp()), {}
    alone = fitted(single, draws=4)
    table, meet, turn = [None, None], threading.Barrier(2), threading.Lock()

    def work(rank: int) -> None:
        toy = mlp()
        with turn:
            shared = Objective(Model(toy, toy.weights), range(13), batch_size=5, shards=Rank(rank, table, meet, turn))
            found[rank] = (fitted(shared, draws=4), shared.cost.forward_backwards)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (mine, my_cost), (theirs, their_cost) = found[0], found[1]
    v = draw(43)
    torch.testing.assert_close(mine.product(v), alone.product(v), rtol=1e-8, atol=1e-9)
    assert torch.equal(mine.product(v), theirs.product(v))
    assert my_cost == pytest.approx(their_cost)
    assert my_cost == pytest.approx(single.cost.forward_backwards)
