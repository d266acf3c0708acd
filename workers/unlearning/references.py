"""Cross-fitted references: what models that never saw a person say about that person's samples.

People are dealt into K folds, and in every repeat anew. The model of repeat r and fold k trains on the members outside
fold k and predicts the samples of everybody inside it. Strangers are dealt like members and never trained on: given the
fold models, a member's and a stranger's out-of-fold predictions are exchangeable, so a stranger calibrates what a
forgotten member should look like. Half of the repeats teach (make targets), the other half judges: a reference that
made a target is no evidence that the target was met.

Only predictions are kept; each fold model is dropped when it has spoken. Predictions are personal data, and `delete`
takes a person's rows out of the file. What it cannot reach: the rows of *other* people come from models that may have
trained on that person. Fit the references again on the schedule that renews the curvature.

Shape suffixes: R repeats, N samples. Outputs have any further shape; classes are the last axis.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from . import fingerprint
from .bounds import one_of, plain_ids
from .calibration import Law, check_law, divergence, log_probabilities, part_of, predict, trained
from .deal import Deal, in_order
from .errors import (
    DamagedFile,
    ForeignReferences,
    MissingReferences,
    NotTrainable,
    RecipeMisbehaves,
    TooFewRetrainings,
)
from .model import Progress, Recipe, Trains
from .tensor_files import read_tensors, write_tensors

Level = Literal["logits", "probabilities", "draw"]
"""How several references become one target: the mean of logits, the mean of probabilities, or the first one alone."""

LEVELS = "logits", "probabilities", "draw"
LEAST_LOG_PROBABILITY = math.log(torch.finfo(torch.float32).tiny)  # a float32 softmax cannot say less than e^-87


@dataclass(frozen=True, eq=False)
class References:
    """Out-of-fold predictions of every repeat, rows in the order of the sample ids.

    Attributes:
        sample_ids: shape (N,), int64, ascending.
        outputs: raw network outputs, shape (R, N, *outputs), float32.
        folds: K.
        seed: of the deals and of the trainings.
        about: whatever names the recipe that trained; free text.
    """

    sample_ids: Tensor
    outputs: Tensor
    folds: int
    seed: int
    about: str = ""

    @property
    def repeats(self) -> int:
        """How many independent references each sample has."""
        return len(self.outputs)

    @property
    def trainings(self) -> int:
        """How many models were trained, each on a share (K-1)/K of the members."""
        return self.folds * self.repeats

    @property
    def teachers(self) -> tuple[int, ...]:
        """The repeats that may make targets."""
        return tuple(range(0, self.repeats, 2))

    @property
    def judges(self) -> tuple[int, ...]:
        """The repeats that may judge what was made of the teachers' targets; none if there is only one repeat."""
        return tuple(range(1, self.repeats, 2))

    def of(self, sample_ids: Sequence[int], *, repeats: Sequence[int]) -> Tensor:
        """Return the predictions of these repeats for these samples, in the order asked, (len(repeats), N, *outputs).

        Raises:
            MissingReferences: a sample or a repeat is not kept, or no repeat was asked for.
        """
        unknown = sorted(set(repeats) - set(range(self.repeats)))
        if unknown or not repeats:
            raise MissingReferences(f"repeats {list(repeats)} asked, {self.repeats} kept (counted from 0)")
        rows_N = self._rows(sample_ids)
        return torch.stack([self.outputs[repeat, rows_N] for repeat in repeats])

    def target(self, sample_ids: Sequence[int], *, repeats: Sequence[int], level: Level, law: Law) -> Tensor:
        """Return what a model that never saw these samples would say, shape (N, *outputs), float64.

        Class logits come centred over the classes, which changes no probability. Averaged probabilities are less
        extreme than any single retraining (loss on the forgotten 2.5 against 4.1, handwriting, measured); averaged
        logits are the geometric mean of the models, and "draw" is an honest single one. Under the plain law the two
        means are the same.

        Args:
            sample_ids: the samples.
            repeats: the references to use, normally `teachers` or some of them; "draw" takes the first.
            level: how several become one.
            law: what the outputs mean.

        Raises:
            BadSetting: no such level or law.
            MissingReferences: as `of`.
        """
        check_law(law)
        one_of("level", level, LEVELS)
        used = repeats[:1] if level == "draw" else repeats
        outputs_RN = self.of(sample_ids, repeats=used).double()
        if law == "plain":
            return outputs_RN.mean(0)
        log_p_RN = torch.stack([log_probabilities(outputs_N) for outputs_N in outputs_RN])
        return _centred(_log_of_mean(log_p_RN) if level == "probabilities" else log_p_RN.mean(0))

    def floor(
        self, sample_ids_by_user: Sequence[Sequence[int]], *, law: Law, repeats: Sequence[int] | None = None
    ) -> Tensor:
        """Return per user the mean divergence over ordered pairs of different repeats, shape (users,), float64.

        It costs no further training and is a rough guide only: two repeats differ in their seeds and in about 1/K of
        their members, and each saw fewer of them. Against true retrainings it was 0.9 to 3.4 times the floor.

        Raises:
            TooFewRetrainings: fewer than two different repeats.
        """
        chosen = sorted(set(range(self.repeats) if repeats is None else repeats))
        if len(chosen) < 2:
            raise TooFewRetrainings(f"{len(chosen)} repeats have no distance between them: 2 are needed")
        by_user = [self.of(ids, repeats=chosen) for ids in sample_ids_by_user]
        return torch.stack([torch.stack(_pairwise(outputs_RN, law)).mean() for outputs_RN in by_user])

    def without(self, sample_ids: Sequence[int]) -> "References":
        """Return a copy that has no rows of these samples; samples without rows are passed over."""
        kept_N = ~torch.isin(self.sample_ids, _ids(sample_ids))
        return References(self.sample_ids[kept_N], self.outputs[:, kept_N], self.folds, self.seed, self.about)

    def save(self, path: Path, *, weights_digest: str, manifest_digest: str) -> None:
        """Write one safetensors file, bound to the weights and the manifest that the references belong to.

        A crash leaves the old file or the new one, and at worst a `.tmp` beside it that the next save overwrites.
        """
        write_tensors(path, self._tensors(), self._metadata() | _digests(weights_digest, manifest_digest))

    @classmethod
    def load(cls, path: Path, *, weights_digest: str, manifest_digest: str) -> Self:
        """Read what `save` wrote.

        Raises:
            DamagedFile: the file was cut or altered, or is none of ours.
            ForeignReferences: the file belongs to other weights or another manifest.
        """
        tensors, metadata = read_tensors(path)
        for name, wanted in _digests(weights_digest, manifest_digest).items():
            if metadata.get(name) != wanted:
                raise ForeignReferences(f"references of {name} {metadata.get(name)} were offered for {wanted}")
        return cls._from(tensors, metadata)

    @classmethod
    def delete(cls, path: Path, sample_ids: Sequence[int]) -> int:
        """Rewrite the file without these samples and return how many rows went; 0 when repeated.

        The old file is unlinked by the replacement. Whether its blocks are overwritten is up to the storage below.

        Raises:
            DamagedFile: the file was cut or altered, or is none of ours.
            ForeignReferences: it holds no references.
        """
        tensors, metadata = read_tensors(path)
        if "outputs" not in tensors or "folds" not in metadata:
            raise ForeignReferences(f"{path.name} holds no references")
        before = cls._from(tensors, metadata)
        after = before.without(sample_ids)
        write_tensors(path, after._tensors(), metadata)  # noqa: SLF001 - the same class
        return len(before.sample_ids) - len(after.sample_ids)

    def _rows(self, sample_ids: Sequence[int]) -> Tensor:
        asked_N = _ids(sample_ids)
        missing = int((~torch.isin(asked_N, self.sample_ids)).sum())
        if missing:
            raise MissingReferences(f"{missing} of {len(asked_N)} samples have no references")
        return torch.searchsorted(self.sample_ids, asked_N)

    def _tensors(self) -> dict[str, Tensor]:
        return {"sample_ids": self.sample_ids.contiguous(), "outputs": self.outputs.contiguous()}

    def _metadata(self) -> dict[str, str]:
        return {"folds": str(self.folds), "seed": str(self.seed), "about": self.about}

    @classmethod
    def _from(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Self:
        folds, seed = int(metadata["folds"]), int(metadata["seed"])
        return cls(tensors["sample_ids"], tensors["outputs"], folds, seed, metadata["about"])


def cross_fit(  # noqa: PLR0913 - the people, the three numbers of the deal, and where and how it reports
    recipe: Recipe,
    members: Sequence[Sequence[int]],
    strangers: Sequence[Sequence[int]] = (),
    *,
    folds: int = 5,
    repeats: int = 4,
    seed: int = 0,
    about: str = "",
    directory: Path | None = None,
    progress: Progress | None = None,
) -> References:
    """Train folds x repeats models on parts of the members and keep what each says about the people it never saw.

    The order of the people and of their samples does not matter. With a directory, every finished fold's predictions
    (personal data too) are kept there and a second call goes on after them; call `discard` once the result is saved.
    The directory is bound to the people, the numbers, the recipe's source and the samples it fetches first.

    Args:
        recipe: must also be a `Trains`.
        members: the sample ids of each person who may be trained on.
        strangers: the sample ids of each person who must never be.
        folds: K, at least 2 and at most the members.
        repeats: deals, each with trainings of its own; even numbers split fairly into teachers and judges.
        seed: of the deals and of the trainings.
        about: whatever names the recipe; part of what a directory is bound to.
        directory: where finished folds wait for the rest.
        progress: called with a share in [0, 1], inside the trainings too.

    Raises:
        NotTrainable: the recipe has no `train`.
        NotDealable: people, folds and repeats do not go together.
        ForeignReferences: the directory holds folds of other people, folds, repeats, seed, `about` or recipe.
        DamagedFile: a fold in the directory was cut or altered: `discard_damaged` makes room for a new one.
        RecipeMisbehaves: `train` returned another module than `build`, or its outputs are not one row per sample.
        NonFinite: a training diverged.
    """
    if not isinstance(recipe, Trains):
        raise NotTrainable("the recipe has no train(sample_ids, seed, progress): no references can be fitted")
    plan = Deal(in_order(members), in_order(strangers), folds, repeats, seed, about)
    plan.check()
    if directory is not None:
        plan = replace(plan, recipe=fingerprint.of_recipe(recipe, plan.everybody))
    _check_directory(directory, plan.digest)
    references: References | None = None
    for step, (repeat, fold) in enumerate(itertools.product(range(repeats), range(folds))):
        share = part_of(progress, step, folds * repeats)
        outputs = _fold(recipe, plan, repeat, fold, directory=directory, progress=share)
        references = references or _blank(plan, outputs)
        _fill(references, repeat, plan.scored(repeat, fold), outputs)
        share(1.0)
    assert references is not None
    return references


def discard(directory: Path) -> None:
    """Delete the predictions that unfinished or finished calls of `cross_fit` left in this directory."""
    for path in directory.glob("fold-*.safetensors*"):
        path.unlink()


def discard_damaged(directory: Path) -> list[str]:
    """Delete the folds that were cut or altered, and tell their names: those alone are trained anew."""
    found = [path for path in sorted(directory.glob("fold-*.safetensors")) if _is_damaged(path)]
    for path in found:
        path.unlink()
    return [path.name for path in found]


def _is_damaged(path: Path) -> bool:
    try:
        return "outputs" not in read_tensors(path)[0]
    except DamagedFile:
        return True


def _fold(recipe: Recipe, plan: Deal, repeat: int, fold: int, *, directory: Path | None, progress: Progress) -> Tensor:
    """Return one fold's predictions, from the directory if they wait there."""
    path = directory / f"fold-{repeat:03d}-{fold:03d}.safetensors" if directory else None
    if path and path.exists():
        return read_tensors(path)[0]["outputs"]
    seed = plan.train_seed(repeat, fold)
    weights = trained(recipe, plan.retained(repeat, fold), seed=seed, progress=progress)
    outputs = predict(recipe, weights, plan.scored(repeat, fold))
    if path:
        write_tensors(path, {"outputs": outputs}, {"settings": plan.digest})
    return outputs


def _blank(plan: Deal, outputs: Tensor) -> References:
    """References to be filled, shaped after one fold's outputs."""
    ids_N = _ids(plan.everybody)
    empty = torch.full((plan.repeats, len(ids_N), *outputs.shape[1:]), math.nan)
    return References(ids_N, empty, plan.folds, plan.seed, plan.about)


def _fill(references: References, repeat: int, sample_ids: Sequence[int], outputs: Tensor) -> None:
    shape = (len(sample_ids), *references.outputs.shape[2:])
    if outputs.shape != shape:  # torch would broadcast some of them
        raise RecipeMisbehaves(f"one fold's outputs have shape {tuple(outputs.shape)}, other folds ask for {shape}")
    references.outputs[repeat, torch.searchsorted(references.sample_ids, _ids(sample_ids))] = outputs


def _check_directory(directory: Path | None, digest: str) -> None:
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    found = sorted(directory.glob("fold-*.safetensors"))
    foreign = [path.name for path in found if read_tensors(path)[1].get("settings") != digest]
    if foreign:
        raise ForeignReferences(
            f"{len(foreign)} of {len(found)} folds here are of other people, folds, repeats, seed, recipe or data: "
            "discard them or choose another directory"
        )


def _digests(weights_digest: str, manifest_digest: str) -> dict[str, str]:
    return {"weights_digest": weights_digest, "manifest_digest": manifest_digest}


def _pairwise(outputs_RN: Tensor, law: Law) -> list[Tensor]:
    return [divergence(a, b, law=law).mean() for a, b in itertools.permutations(outputs_RN, 2)]


def _log_of_mean(log_p_RN: Tensor) -> Tensor:
    return (log_p_RN.logsumexp(0) - math.log(len(log_p_RN))).clamp_min(LEAST_LOG_PROBABILITY)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _ids(sample_ids: Sequence[int]) -> Tensor:
    return torch.tensor(plain_ids(sample_ids), dtype=torch.int64)
