"""Seconds and precision on a CUDA GPU: ResNet-18 on images keyed by person, a causal transformer of 100 M parameters.

    python benchmarks/gpu.py [--tiny] [--device cpu]

A projection and a renewal are timed beside one epoch of retraining what moves; a GGN product and a projection's step
under tf32 and under bf16 autocast are compared with float32. Data are generated, references come from two short
retrainings without the person. `--tiny --device cpu` runs a miniature, so that a test sees the script rot; it writes
nothing. This script has not been run on a GPU in this repository's history yet: benchmarks/results/ has no gpu.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks.networks import TINY, Images, OnDevice, Size, Texts  # noqa: E402 - after the path
from benchmarks.report import Figure, write  # noqa: E402
from workers.unlearning import ekfac  # noqa: E402
from workers.unlearning.calibration import predict  # noqa: E402
from workers.unlearning.curvature import GaussNewton  # noqa: E402
from workers.unlearning.model import Model  # noqa: E402
from workers.unlearning.objective import Objective  # noqa: E402
from workers.unlearning.projection import project  # noqa: E402
from workers.unlearning.references import References  # noqa: E402
from workers.unlearning.renewal import renew  # noqa: E402
from workers.unlearning.report import Update  # noqa: E402

Found = TypeVar("Found")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both networks, or say that there is no GPU."""
    asked = argparse.ArgumentParser(description="Seconds and precision on a CUDA GPU.")
    asked.add_argument("--tiny", action="store_true", help="a miniature; writes no result")
    asked.add_argument("--device", default="cuda", help="cuda, or cpu with --tiny")
    told = asked.parse_args(arguments)
    cpu = told.tiny and told.device == "cpu"
    if not (cpu or torch.cuda.is_available()):
        sys.stdout.write("This machine has no CUDA GPU, so nothing was measured.\n")
        return
    device = torch.device("cpu" if cpu else told.device)
    rows = figures(TINY if told.tiny else Size(), device)
    if told.tiny:
        sys.stdout.writelines(f"{row.figure}: {row.value}\n" for row in rows)
    else:
        write("gpu", rows, device=torch.cuda.get_device_name(device))


def figures(size: Size, device: torch.device) -> list[Figure]:
    """Return the rows of both networks; float32 is meant literally, which is not torch's default in convolutions."""
    if device.type == "cuda":
        _round_float32(to="nothing")
    rows = []
    for recipe in (Images(size, device), Texts(size, device)):
        timed = Trial(recipe)
        rows += [*timed.seconds(), *timed.precision()]
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 1e9
            rows.append(Figure(f"{recipe.name}: peak GPU memory so far, GB", round(peak, 2)))
    return rows


class Trial:
    """One recipe with its deployed weights, two retrainings without the first person, and factors."""

    def __init__(self, recipe: OnDevice) -> None:
        self.recipe, everyone = recipe, list(range(len(recipe.inputs)))
        self.gone, self.kept = everyone[: recipe.each], everyone[recipe.each :]
        torch.manual_seed(0)
        base = recipe.build().state_dict()
        self.deployed = recipe.trained(base, everyone, seed=1)
        self.epoch_seconds, first = self.clocked(lambda: recipe.trained(base, self.kept, seed=2))
        heard = [predict(recipe, w, self.gone).cpu() for w in (first, recipe.trained(base, self.kept, seed=3))]
        self.references = References(torch.tensor(self.gone), torch.stack(heard), folds=2, seed=2)
        model = Model(recipe, self.deployed)
        self.fit_seconds, self.factors = self.clocked(
            lambda: ekfac.fit(Objective(model, everyone, batch_size=recipe.chunk), model.theta_P)
        )

    def seconds(self) -> list[Figure]:
        """Time a projection and a renewal against the epoch; a GPU runs each once before, untimed."""
        rows = [Figure(f"{self.recipe.name}: retraining, seconds per epoch", round(self.epoch_seconds, 3))]
        rows.append(Figure(f"{self.recipe.name}: EK-FAC fit, once per version, seconds", round(self.fit_seconds, 3)))
        for what, run in (("projection", self.projected), ("renewal", self.renewed)):
            if self.recipe.device.type == "cuda":
                run()
            spent, _ = self.clocked(run)
            told = f"{spent:.3f} ({spent / self.epoch_seconds:.2f} epochs)"
            rows.append(Figure(f"{self.recipe.name}: {what}, seconds", told))
        return rows

    def precision(self) -> list[Figure]:
        """Compare a GGN product and a projection's step in lower precisions with float32."""
        product_P, step_P, rows = self.product(), self.step(), []
        for name in ("tf32", "bf16") if self.recipe.device.type == "cuda" else ("bf16",):
            with PRECISIONS[name](self.recipe):
                found = {"GGN product": (self.product(), product_P), "projection step": (self.step(), step_P)}
            for what, (lower_P, full_P) in found.items():
                away = float((lower_P - full_P).norm() / full_P.norm())
                rows.append(Figure(f"{self.recipe.name}: {what}, {name} against float32, relative difference", away))
        return rows

    def projected(self) -> Update:
        """Forget the first person by a projection."""
        return project(
            self.recipe,
            self.deployed,
            forget_ids=self.gone,
            retain_ids=self.kept,
            references=self.references,
            factors=self.factors,
            law="softmax",
        )

    def renewed(self) -> Update:
        """Forget the first person by a renewal."""
        return renew(
            self.recipe,
            self.deployed,
            forget_ids=self.gone,
            retain_ids=self.kept,
            references=self.references,
            law="softmax",
            seed=4,
        )

    def product(self) -> Tensor:
        """Return the forgotten samples' GGN times a fixed random vector, shape (P,)."""
        model = Model(self.recipe, self.deployed)
        v_P = torch.randn(len(model.theta_P), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return GaussNewton(Objective(model, self.gone, batch_size=self.recipe.chunk), model.theta_P).product(
            v_P.to(model.theta_P)
        )

    def step(self) -> Tensor:
        """Return how far a projection moves, shape (P,)."""
        model = Model(self.recipe, self.deployed)
        return model.flatten(self.projected().weights) - model.theta_P

    def clocked(self, run: Callable[[], Found]) -> tuple[float, Found]:
        """Return seconds and result, the device's queue empty before and after."""
        _wait(self.recipe.device)
        started = time.perf_counter()
        found = run()
        _wait(self.recipe.device)
        return time.perf_counter() - started, found


def _wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _round_float32(*, to: Literal["nothing", "tf32"]) -> None:
    """Let matrix products and convolutions round their inputs to tf32 or leave them; torch rounds in convolutions."""
    torch.set_float32_matmul_precision("high" if to == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = to == "tf32"


@contextmanager
def _tf32(_: OnDevice) -> Iterator[None]:
    """Round to tf32 for a while."""
    _round_float32(to="tf32")
    try:
        yield
    finally:
        _round_float32(to="nothing")


@contextmanager
def _bf16(recipe: OnDevice) -> Iterator[None]:
    """Let the modules that the recipe builds compute under bf16 autocast."""
    recipe.narrow = True
    try:
        yield
    finally:
        recipe.narrow = False


PRECISIONS = {"tf32": _tf32, "bf16": _bf16}

if __name__ == "__main__":
    main()
