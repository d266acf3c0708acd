"""Two gloo processes against one: the same sums and update, identical bits on both ranks, one all-reduce a sum."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from tests.unit.unlearning.problems import PROBLEMS
from workers.unlearning import Settings, forget
from workers.unlearning.curvature import GaussNewton
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective
from workers.unlearning.sharding import ALONE, ProcessGroup, Shards
from workers.unlearning.testing import Classification

pytestmark = pytest.mark.slow  # seconds each: make check leaves them to make test

RECIPE = Classification(users=6, each=5, hidden=4)
GONE, REST = RECIPE.samples_of(0), RECIPE.samples_of(1, 2, 3, 4, 5)
SETTINGS = Settings(tolerance=1e-9, groups=8, batch_size=7, tries=2)


class Counted(ProcessGroup):
    """The real group, with its sums counted."""

    calls = 0

    def sum(self, part: Tensor, /) -> Tensor:
        self.calls += 1
        return super().sum(part)


def _results(shards: Shards) -> dict[str, Any]:  # Any: tensors and plain numbers
    torch.manual_seed(0)
    model = Model(RECIPE, RECIPE.build().state_dict())
    objective = Objective(model, REST, batch_size=4, shards=shards)
    v = torch.linspace(-1, 1, len(model.theta_P), dtype=torch.float64)
    started = getattr(shards, "calls", 0)
    found = {"product": GaussNewton(objective, model.theta_P).product(v)}
    found["sums_per_product"] = getattr(shards, "calls", 0) - started
    found["gradient"] = objective.gradient(model.theta_P)
    found["losses"] = objective.losses(model.theta_P)
    found["outputs"] = objective.outputs(model.theta_P)[0]
    found["few"] = Objective(model, REST[:1], shards=shards).losses(model.theta_P)
    found["cost"] = objective.cost.forward_backwards
    weights = model.state(model.theta_P)
    update = forget(RECIPE, weights, forget_ids=GONE, retain_ids=REST, settings=SETTINGS, shards=shards)
    found["update"] = torch.cat([tensor.flatten() for tensor in update.weights.values()])
    found["work"] = update.report.forward_backwards
    return found


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    shards = Counted()
    torch.save({**_results(shards), "slice": shards.mine(range(7))}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:  # Any: as above
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.spawn(_rank, args=(str(folder),), nprocs=2, join=False)
    try:
        for _ in range(30):
            if context.join(timeout=1):
                break
        else:
            pytest.fail("two processes did not finish in 30 s")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]


def test_two_processes_compute_what_one_does(ranks: list[dict[str, Any]]) -> None:
    alone = _results(ALONE)
    for name in ("gradient", "product", "losses", "outputs", "few"):
        torch.testing.assert_close(ranks[0][name], alone[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ranks[0]["update"], alone["update"], rtol=1e-6, atol=1e-8)


def test_both_ranks_hold_identical_bits_and_count_the_same_cost(ranks: list[dict[str, Any]]) -> None:
    for name in ("gradient", "product", "losses", "outputs", "few", "update"):
        assert torch.equal(ranks[0][name], ranks[1][name])
    assert ranks[0]["work"] == ranks[1]["work"]
    assert ranks[0]["cost"] == ranks[1]["cost"] == pytest.approx(len(REST) * (2 + 1 + 2 / 3))


def test_a_product_takes_one_all_reduce(ranks: list[dict[str, Any]]) -> None:
    assert [rank["sums_per_product"] for rank in ranks] == [1, 1]


def test_the_slices_of_all_ranks_in_order_are_the_whole(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["slice"] + ranks[1]["slice"] == list(range(7))
    assert {len(rank["slice"]) for rank in ranks} == {3, 4}


def test_alone_the_sum_is_the_part_and_the_slice_is_everything() -> None:
    part = torch.ones(3)
    assert ALONE.sum(part) is part
    assert ALONE.mine([3, 1]) == [3, 1]


class Half:
    """Rank 0 of 2 without its partner: a sum that stays a part."""

    rank, world = 0, 2

    def mine(self, sample_ids: Any, /) -> list[int]:  # Any: a sequence of ids
        return list(sample_ids)[: len(sample_ids) // 2]

    def sum(self, part: Tensor, /) -> Tensor:
        return part


def test_a_shard_adds_its_own_samples_and_the_whole_weight_decay_once() -> None:
    toy = PROBLEMS["bilinear"]()
    model = Model(toy, toy.weights)
    half, four = (Objective(model, range(n), shards=s) for n, s in ((8, Half()), (4, ALONE)))
    torch.testing.assert_close(half.data_gradient(model.theta_P), four.data_gradient(model.theta_P))
    torch.testing.assert_close(half.gradient(model.theta_P) - half.data_gradient(model.theta_P), 0.28 * model.theta_P)
    assert sum(len(targets) for _, targets in half.chunks()) == 8
    assert sum(len(targets) for _, targets in half.own_chunks()) == 4
