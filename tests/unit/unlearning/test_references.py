"""Cross-fitted references: who trained on whom, what is kept, what is deleted; each number against its own oracle."""

import importlib
import itertools
import math
import random
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from workers.unlearning.calibration import choose_held_out, divergence, draw_canaries, noise_floor, predict
from workers.unlearning.errors import (
    DamagedFile,
    ForeignReferences,
    MissingReferences,
    NonFinite,
    NotDealable,
    NotTrainable,
    RecipeMisbehaves,
    TooFewRetrainings,
)
from workers.unlearning.model import Inputs, Progress
from workers.unlearning.references import Level, References, cross_fit, discard, discard_damaged
from workers.unlearning.tensor_files import digest_of, write_tensors
from workers.unlearning.testing import Classification, Ridge

torch.set_num_threads(1)

DIGESTS = {"weights_digest": "w" * 64, "manifest_digest": "m" * 64}
MEMBERS = [[person * 3 + k for k in range(3)] for person in range(11)]
STRANGERS = [[100, 101], [102], [103, 104]]


class Witness:
    """A recipe whose model *is* the list of people it was trained on: it answers 1 for a sample it has seen, else 0.

    The second output is the training's seed, scaled; the third tells a training from an untrained module.
    """

    l2_per_sample = 0.0
    l2_total = 0.0

    def __init__(self, fails_at: int = -1) -> None:
        self.trainings: list[tuple[list[int], int]] = []
        self._fails_at = fails_at

    def build(self) -> nn.Module:
        return nn.Linear(200, 3, bias=False)

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        return functional.one_hot(torch.tensor(list(sample_ids)), 200).float(), torch.zeros(len(sample_ids), 3)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1)

    def train(self, sample_ids: Sequence[int], *, seed: int, progress: Progress) -> nn.Module:
        if len(self.trainings) == self._fails_at:
            raise ConnectionError("the machine is gone")
        self.trainings.append((list(sample_ids), seed))
        module = nn.Linear(200, 3, bias=False)
        weight = torch.zeros(3, 200)
        weight[0, list(sample_ids)] = 1.0
        weight[1] = seed / 2**31
        weight[2] = 7.0
        module.load_state_dict({"weight": weight})
        for share in (0.25, 0.5, 1.5):  # 1.5: an owner who counts badly
            progress(share)
        return module


class Hasty(Classification):
    """Classification trained by a few noisy gradient steps, which may be interrupted."""

    trainings = 0
    fails_at = -1

    def train(self, sample_ids: Sequence[int], *, seed: int, progress: Progress) -> nn.Module:
        if self.trainings == self.fails_at:
            raise ConnectionError("the machine is gone")
        self.trainings += 1
        torch.manual_seed(seed)
        module = self.build()
        for step in range(10):
            batch = torch.tensor(sample_ids)[torch.randperm(len(sample_ids))[:16]].tolist()
            inputs, targets = self.fetch(batch)
            grads = torch.autograd.grad(self.loss(module(inputs), targets).sum(), list(module.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(module.parameters(), grads, strict=True):
                    parameter.sub_(0.05 * grad)
            progress((step + 1) / 10)
        return module


class TrainableRidge(Ridge):
    """Ridge with the closed form as its training."""

    def train(self, sample_ids: Sequence[int], *, seed: int, progress: Progress) -> nn.Module:
        module = self.build()
        module.load_state_dict(self.solved(sample_ids))
        return module


def _drawn(repeats: int = 4, samples: int = 6, classes: int = 3, scale: float = 1.0) -> References:
    outputs = scale * torch.randn(repeats, samples, classes, generator=torch.Generator().manual_seed(0))
    return References(torch.arange(samples) * 10, outputs, folds=2, seed=0, about="drawn")


def _people_in(samples: Sequence[int], people: Sequence[Sequence[int]]) -> set[int]:
    return {i for i, ids in enumerate(people) if set(ids) & set(samples)}


def test_nobody_is_predicted_by_a_model_that_trained_on_them() -> None:
    witness = Witness()
    references = cross_fit(witness, MEMBERS, STRANGERS, folds=4, repeats=3)
    assert float(references.outputs[..., 0].max()) == 0.0
    assert bool((references.outputs[..., 2] == 7.0).all()), "a row was left without a prediction"


def test_strangers_are_dealt_into_folds_and_never_trained_on() -> None:
    witness = Witness()
    references = cross_fit(witness, MEMBERS, STRANGERS, folds=2, repeats=3)
    trained_on = set(itertools.chain(*(ids for ids, _ in witness.trainings)))
    assert trained_on == set(itertools.chain(*MEMBERS))
    seeds_RN = references.of([100, 102, 103], repeats=[0, 1, 2])[..., 1]
    assert seeds_RN.unique().numel() > 3, "the strangers of a repeat must not all come from one model"
    assert len({float(s) for s in references.of([100, 101], repeats=[0])[0, :, 1]}) == 1, "a person stays together"


def test_every_member_is_left_out_exactly_once_per_repeat_in_balanced_folds() -> None:
    witness = Witness()
    references = cross_fit(witness, MEMBERS, STRANGERS, folds=4, repeats=3)
    assert references.trainings == len(witness.trainings) == 12
    everyone = set(itertools.chain(*MEMBERS))
    for repeat in range(3):
        left_out = [sorted(everyone - set(ids)) for ids, _ in witness.trainings[4 * repeat : 4 * repeat + 4]]
        assert sorted(itertools.chain(*left_out)) == sorted(everyone)
        sizes = [len(_people_in(samples, MEMBERS)) for samples in left_out]
        assert sorted(sizes) == [2, 3, 3, 3]
        assert all(len(samples) == 3 * size for samples, size in zip(left_out, sizes, strict=True))


def test_repeats_differ_in_their_deals_and_every_training_in_its_seed() -> None:
    witness = Witness()
    cross_fit(witness, MEMBERS, folds=4, repeats=3)
    deals = [frozenset(tuple(ids) for ids, _ in witness.trainings[4 * r : 4 * r + 4]) for r in range(3)]
    assert len(set(deals)) == 3
    assert len({seed for _, seed in witness.trainings}) == 12
    assert all(0 <= seed < 2**31 for _, seed in witness.trainings)


def test_the_order_of_the_people_changes_nothing_and_the_seed_changes_the_deal() -> None:
    shuffled = [list(reversed(ids)) for ids in reversed(MEMBERS)]
    first, again = cross_fit(Witness(), MEMBERS, STRANGERS), cross_fit(Witness(), shuffled, STRANGERS[::-1])
    assert torch.equal(first.outputs, again.outputs)
    assert not torch.equal(first.outputs, cross_fit(Witness(), MEMBERS, STRANGERS, seed=1).outputs)


def test_ridge_references_are_the_closed_form_without_the_fold() -> None:
    ridge = TrainableRidge(samples=24, features=5, seed=3)
    members = [[2 * u, 2 * u + 1] for u in range(10)]
    references = cross_fit(ridge, members, [[20, 21], [22, 23]], folds=5, repeats=2)
    deal = Witness()
    cross_fit(deal, members, [[20, 21], [22, 23]], folds=5, repeats=2)  # tells who trained whom; the ids are the same
    for step, (ids, _) in enumerate(deal.trainings):
        out = [i for i in range(20) if i not in ids]
        x = ridge.inputs_NF[ids]
        normal = x.T @ x + (ridge.l2_per_sample * len(ids) + ridge.l2_total) * torch.eye(5, dtype=torch.float64)
        expected = ridge.inputs_NF[out] @ torch.linalg.inv(normal) @ x.T @ ridge.targets_N1[ids]
        found = references.of(out, repeats=[step // 5])[0]
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_an_interrupted_fit_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    settings = {"folds": 3, "repeats": 2, "seed": 5}
    people = Hasty(users=12, each=4, hidden=8)
    members, strangers = [people.samples_of(u) for u in range(10)], [people.samples_of(u) for u in (10, 11)]
    whole = cross_fit(people, members, strangers, **settings)
    people.trainings, people.fails_at = 0, 3
    with pytest.raises(ConnectionError):
        cross_fit(people, members, strangers, directory=tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == 3
    people.fails_at = -1
    shares: list[float] = []
    found = cross_fit(people, members, strangers, directory=tmp_path, progress=shares.append, **settings)
    assert people.trainings == 6, "three before the interruption and three after it"
    assert torch.equal(found.outputs, whole.outputs)
    assert torch.equal(found.sample_ids, whole.sample_ids)
    assert shares[:4] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 3.1 / 6])
    assert shares[-1] == 1.0


@pytest.mark.parametrize("other", [{"seed": 1}, {"folds": 3}, {"repeats": 3}, {"about": "another recipe"}])
def test_a_directory_of_other_settings_is_refused_and_left_alone(tmp_path: Path, other: dict[str, object]) -> None:
    settings: dict[str, object] = {"folds": 2, "repeats": 2, "directory": tmp_path}
    cross_fit(Witness(), MEMBERS, **settings)  # type: ignore[arg-type]  # a row of keywords
    untouched = Witness()
    with pytest.raises(ForeignReferences, match="4 of 4 folds"):
        cross_fit(untouched, MEMBERS, **settings | other)  # type: ignore[arg-type]  # a row of keywords
    with pytest.raises(ForeignReferences):
        cross_fit(untouched, MEMBERS[:-1], **settings)  # type: ignore[arg-type]  # a row of keywords
    assert untouched.trainings == []
    assert len(list(tmp_path.iterdir())) == 4


def test_discarding_leaves_no_prediction_behind_and_no_other_file_gone(tmp_path: Path) -> None:
    cross_fit(Witness(), MEMBERS, folds=2, repeats=1, directory=tmp_path)
    (tmp_path / "fold-000-001.safetensors.tmp").write_bytes(b"what a crash left")
    (tmp_path / "references.safetensors").write_bytes(b"kept")
    discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["references.safetensors"]


def test_folds_of_other_code_are_not_mixed_with_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner changes train() after a crash: the module of the recipe is another text under the same name."""
    where = tmp_path / "folds"
    (tmp_path / "owned_recipe.py").write_text(OWNED.format(value="1.0"))
    monkeypatch.syspath_prepend(tmp_path)
    recipe = importlib.import_module("owned_recipe").Owned()
    first = cross_fit(recipe, MEMBERS, folds=2, repeats=2, directory=where)
    assert torch.equal(cross_fit(recipe, MEMBERS, folds=2, repeats=2, directory=where).outputs, first.outputs)
    (where / "fold-001-001.safetensors").unlink()
    (tmp_path / "owned_recipe.py").write_text(OWNED.format(value="-1.00"))  # another length: no clock decides
    changed = importlib.reload(sys.modules["owned_recipe"]).Owned()
    with pytest.raises(ForeignReferences, match="3 of 3 folds"):
        cross_fit(changed, MEMBERS, folds=2, repeats=2, directory=where)


OWNED = """
from tests.unit.unlearning.test_references import Witness, _constant


class Owned(Witness):
    def train(self, sample_ids, *, seed, progress):
        return _constant({value})
"""


@pytest.mark.parametrize("part", ["inputs", "targets", "lr"])
def test_folds_of_other_data_or_numbers_are_not_mixed_with_new_ones(tmp_path: Path, part: str) -> None:
    cross_fit(Witness(), MEMBERS, folds=2, repeats=1, directory=tmp_path)
    other = Witness()
    if part == "lr":
        other.lr = 0.5  # type: ignore[attr-defined]  # as a paced recipe has
    else:
        fetch = other.fetch
        shifts = (1.0, 0.0) if part == "inputs" else (0.0, 1.0)
        other.fetch = lambda ids: tuple(t + s for t, s in zip(fetch(ids), shifts, strict=True))  # type: ignore[method-assign, assignment, operator]  # the owner's data, not our code
    with pytest.raises(ForeignReferences, match="2 of 2 folds"):
        cross_fit(other, MEMBERS, folds=2, repeats=1, directory=tmp_path)


def _damages(whole: bytes) -> list[bytes]:
    """Cut, empty, no such file at all, one bit turned over, and a NaN in the last number."""
    flipped = whole[:-2] + bytes([whole[-2] ^ 0x40]) + whole[-1:]
    return [whole[: len(whole) // 2], b"", b"x" * 200, flipped, whole[:-4] + struct.pack("<f", math.nan)]


def test_a_damaged_fold_is_never_believed_and_alone_trained_anew(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"folds": 2, "repeats": 2, "directory": tmp_path}
    whole, path = cross_fit(Witness(), MEMBERS, **settings), tmp_path / "fold-001-000.safetensors"
    sound = path.read_bytes()
    for damaged in _damages(sound):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="fold-001-000") as caught:
            cross_fit(Witness(), MEMBERS, **settings)
        assert caught.value.path == path
        assert discard_damaged(tmp_path) == ["fold-001-000.safetensors"]
        again = Witness()
        assert torch.equal(cross_fit(again, MEMBERS, **settings).outputs, whole.outputs)
        assert len(again.trainings) == 1
    assert discard_damaged(tmp_path) == []


def test_damaged_references_and_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "references.safetensors"
    _drawn().save(path, **DIGESTS)
    for damaged in _damages(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile):
            References.load(path, **DIGESTS)
        with pytest.raises(DamagedFile):
            References.delete(path, [1])
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(DamagedFile, match="carries no digest"):
        References.load(path, **DIGESTS)
    write_tensors(path, {"weight": torch.zeros(1)}, {})
    for read in (lambda: References.load(path, **DIGESTS), lambda: References.delete(path, [1])):
        with pytest.raises(ForeignReferences):
            read()


def test_a_file_that_was_bound_to_other_weights_afterwards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "references.safetensors"
    _drawn().save(path, **DIGESTS)
    path.write_bytes(path.read_bytes().replace(b"w" * 64, b"v" * 64))
    with pytest.raises(DamagedFile, match="altered or cut"):
        References.load(path, **DIGESTS | {"weights_digest": "v" * 64})


def test_every_dtype_has_a_digest() -> None:
    kinds = [
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
    ]
    found = {
        digest_of({"x": torch.ones(shape, dtype=kind)}, {}) for kind in kinds for shape in [(), (0,), (2, 1), (2,)]
    }
    assert len(found) == 4 * len(kinds)


def test_progress_rises_within_a_training_and_stays_within_its_part() -> None:
    shares: list[float] = []
    cross_fit(Witness(), MEMBERS, folds=2, repeats=2, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[:4] == pytest.approx([0.25 / 4, 0.5 / 4, 0.25, 0.25])
    assert shares[-1] == 1.0


def test_the_caller_s_random_state_is_left_alone() -> None:
    people = Hasty(users=6, each=3, hidden=4)
    fetch = people.fetch
    people.fetch = lambda ids: (torch.rand(1), fetch(ids))[1]  # type: ignore[method-assign]  # a fetch that draws
    torch.manual_seed(11)
    random.seed(11)
    before = torch.get_rng_state(), random.getstate()
    cross_fit(people, [people.samples_of(u) for u in range(6)], folds=2, repeats=1)
    noise_floor(people, people.samples_of(0, 1), people.samples_of(2), seeds=[1, 2, 3], law="softmax")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize(
    ("members", "strangers", "changed", "sentence"),
    [
        (MEMBERS, [], {"folds": 1}, "11 members, 1 folds"),
        (MEMBERS, [], {"folds": 12}, "11 members, 12 folds"),
        (MEMBERS, [], {"repeats": 0}, "0 repeats"),
        ([], [], {}, "0 members"),
        ([[1], [2], []], [], {"folds": 2}, "1 of 3 people have no samples"),
        ([[1], [2]], [[]], {"folds": 2}, "1 of 3 people have no samples"),
        ([[1, 2], [2, 3]], [], {"folds": 2}, "1 sample ids appear twice"),
        ([[1], [2]], [[2, 1]], {"folds": 2}, "2 sample ids appear twice"),
        ([[1, 1], [2]], [], {"folds": 2}, "1 sample ids appear twice"),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_its_numbers(
    members: list[list[int]], strangers: list[list[int]], changed: dict[str, int], sentence: str
) -> None:
    witness = Witness()
    with pytest.raises(NotDealable, match=sentence):
        cross_fit(witness, members, strangers, **changed)  # type: ignore[arg-type]  # a row of keywords
    assert witness.trainings == []


def test_a_recipe_without_training_is_told_so() -> None:
    with pytest.raises(NotTrainable):
        cross_fit(Ridge(samples=4, features=2, seed=0), [[0], [1], [2], [3]], folds=2)


@pytest.mark.parametrize(
    ("trains", "refusal"),
    [
        (lambda: nn.Linear(200, 4, bias=False), RecipeMisbehaves),
        (lambda: nn.Linear(200, 3), RecipeMisbehaves),
        (lambda: nn.Linear(200, 3, bias=False).double(), RecipeMisbehaves),
        (lambda: _constant(math.nan), NonFinite),
    ],
)
def test_a_training_that_is_no_state_of_the_module_is_refused(
    trains: Callable[[], nn.Module], refusal: type[Exception]
) -> None:
    witness = Witness()
    witness.train = lambda *_, **__: trains()  # type: ignore[method-assign]  # the owner's mistake, not our code
    with pytest.raises(refusal):
        cross_fit(witness, MEMBERS, folds=2, repeats=1)


def _constant(value: float) -> nn.Module:
    module = nn.Linear(200, 3, bias=False)
    module.load_state_dict({"weight": torch.full((3, 200), value)})
    return module


def test_predictions_run_in_eval_mode_and_in_the_order_asked() -> None:
    class Dropping(Witness):
        def build(self) -> nn.Module:
            return nn.Sequential(nn.Linear(200, 3, bias=False), nn.Dropout(0.5))

    weight = torch.randn(3, 200)
    found = predict(Dropping(), {"0.weight": weight}, [7, 3, 9], batch_size=2)
    assert torch.equal(found, weight.T[[7, 3, 9]])


def test_teachers_and_judges_share_no_repeat_and_leave_none_out() -> None:
    for repeats in (1, 2, 3, 4, 7):
        references = _drawn(repeats)
        assert set(references.teachers).isdisjoint(references.judges)
        assert sorted(references.teachers + references.judges) == list(range(repeats))
    assert _drawn(1).judges == ()


def test_rows_come_back_in_the_order_asked() -> None:
    references = _drawn()
    found = references.of([40, 0, 40], repeats=[3, 1])
    assert torch.equal(found, references.outputs[[3, 1]][:, [4, 0, 4]])


def test_samples_and_repeats_that_are_not_kept_are_counted() -> None:
    with pytest.raises(MissingReferences, match="2 of 3 samples"):
        _drawn().of([10, 11, 999], repeats=[0])
    for repeats in ([4], [-1], []):
        with pytest.raises(MissingReferences, match="4 kept"):
            _drawn().of([10], repeats=repeats)


def test_a_mean_of_logits_is_the_geometric_mean_of_the_models() -> None:
    references, ids = _drawn(), [0, 20, 50]
    target = references.target(ids, repeats=[0, 2], level="logits", law="softmax")
    p, q = (torch.softmax(references.outputs[r][[0, 2, 5]].double(), -1) for r in (0, 2))
    geometric = (p * q).sqrt() / (p * q).sqrt().sum(-1, keepdim=True)
    torch.testing.assert_close(target.softmax(-1), geometric)


def test_a_mean_of_probabilities_is_the_arithmetic_mean_and_stays_finite() -> None:
    references, ids = _drawn(), [0, 20, 50]
    target = references.target(ids, repeats=[0, 2], level="probabilities", law="softmax")
    p, q = (torch.softmax(references.outputs[r][[0, 2, 5]].double(), -1) for r in (0, 2))
    torch.testing.assert_close(target.softmax(-1), (p + q) / 2)
    sure = _drawn(scale=1e4).target(ids, repeats=[0, 2], level="probabilities", law="softmax")
    assert bool(sure.isfinite().all())
    assert float(sure.max() - sure.min()) < 180


@pytest.mark.parametrize("level", ["logits", "probabilities", "draw"])
def test_every_level_is_centred_and_one_repeat_alone_is_itself(level: Level) -> None:
    target = _drawn().target([0, 30], repeats=[1], level=level, law="softmax")
    torch.testing.assert_close(target.sum(-1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(target.softmax(-1), _drawn().outputs[1, [0, 3]].double().softmax(-1))


def test_a_draw_is_one_model_whole() -> None:
    both = _drawn().target([0, 30], repeats=[2, 0], level="draw", law="softmax")
    assert torch.equal(both, _drawn().target([0, 30], repeats=[2], level="draw", law="softmax"))


def test_plain_outputs_are_averaged_and_a_draw_is_left_as_it_was() -> None:
    references = _drawn(classes=1)
    mean = references.target([10, 50], repeats=[0, 1, 3], level="logits", law="plain")
    torch.testing.assert_close(mean, references.outputs[[0, 1, 3]][:, [1, 5]].double().mean(0))
    draw = references.target([10, 50], repeats=[3, 0], level="draw", law="plain")
    assert torch.equal(draw, references.outputs[3, [1, 5]].double())


def test_one_column_is_no_class_law() -> None:
    for level in ("logits", "probabilities", "draw"):
        with pytest.raises(RecipeMisbehaves, match="use the plain law"):
            _drawn(classes=1).target([0], repeats=[0, 1], level=level, law="softmax")  # type: ignore[arg-type]  # a loop
    flat = References(torch.arange(3), torch.randn(2, 3), folds=2, seed=0)
    with pytest.raises(RecipeMisbehaves, match="use the plain law"):
        flat.target([0, 1], repeats=[0, 1], level="logits", law="softmax")


def test_the_floor_is_the_mean_over_pairs_of_repeats_computed_by_hand() -> None:
    references = _drawn(repeats=3)
    found = references.floor([[0, 10], [20, 30, 50]], law="softmax")
    for user, rows in enumerate([[0, 1], [2, 3, 5]]):
        total, count = 0.0, 0
        for a, b, row in itertools.product(range(3), range(3), rows):
            if a != b:
                p, q = (torch.softmax(references.outputs[r, row].double(), -1).tolist() for r in (a, b))
                total += sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))
                count += 1
        assert float(found[user]) == pytest.approx(total / count, rel=1e-10)
    plain = references.floor([[20]], law="plain", repeats=[0, 2])
    assert float(plain) == pytest.approx(float((references.outputs[0, 2] - references.outputs[2, 2]).square().mean()))


def test_one_repeat_has_no_floor() -> None:
    for references, repeats in ((_drawn(1), None), (_drawn(4), [2, 2])):
        with pytest.raises(TooFewRetrainings, match="1 repeats"):
            references.floor([[0]], law="softmax", repeats=repeats)


def test_the_divergence_is_torch_s_kl_and_a_mean_over_positions() -> None:
    p, q = torch.randn(2, 5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    by_torch = functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(p, q, law="softmax"), by_torch.mean(1))
    assert torch.equal(divergence(p, p, law="softmax"), torch.zeros(5, dtype=torch.float64))


def test_a_file_brings_back_what_was_saved(tmp_path: Path) -> None:
    path, references = tmp_path / "references.safetensors", _drawn()
    references.save(path, **DIGESTS)
    found = References.load(path, **DIGESTS)
    assert torch.equal(found.outputs, references.outputs)
    assert torch.equal(found.sample_ids, references.sample_ids)
    assert (found.folds, found.seed, found.about) == (references.folds, references.seed, references.about)
    assert [p.name for p in tmp_path.iterdir()] == ["references.safetensors"]


@pytest.mark.parametrize("name", ["weights_digest", "manifest_digest"])
def test_references_of_other_weights_or_another_manifest_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "references.safetensors"
    _drawn().save(path, **DIGESTS)
    with pytest.raises(ForeignReferences, match=name):
        References.load(path, **DIGESTS | {name: "f" * 64})


def test_a_deleted_person_s_bytes_are_not_in_the_file(tmp_path: Path) -> None:
    path, references = tmp_path / "references.safetensors", _drawn()
    references.outputs[:, 2] = 1234.5678
    references.outputs[:, 3] = 8765.4321
    references.save(path, **DIGESTS)
    gone, stays = struct.pack("<f", 1234.5678), struct.pack("<f", 8765.4321)
    assert path.read_bytes().count(gone) == 12
    held = References.load(path, **DIGESTS)
    assert References.delete(path, [20, 77]) == 1
    assert path.read_bytes().count(gone) == 0
    assert path.read_bytes().count(stays) == 12
    assert struct.pack("<q", 20) not in path.read_bytes()
    after = References.load(path, **DIGESTS)
    assert after.sample_ids.tolist() == [0, 10, 30, 40, 50]
    assert torch.equal(after.of([0, 50], repeats=[1]), references.of([0, 50], repeats=[1]))
    with pytest.raises(MissingReferences):
        after.of([20], repeats=[0])
    assert References.delete(path, [20]) == 0, "a repeated deletion must be harmless"
    assert float(held.of([20], repeats=[0])[0, 0, 0]) == pytest.approx(1234.5678), "a copy in memory is no view"
    assert [p.name for p in tmp_path.iterdir()] == ["references.safetensors"]


def test_a_crash_before_the_replacement_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "references.safetensors"
    _drawn().save(path, **DIGESTS)
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="power"):
            References.delete(path, [20])
    assert path.read_bytes() == before
    assert References.delete(path, [20]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["references.safetensors"]


def test_everyone_can_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "references.safetensors"
    _drawn().save(path, **DIGESTS)
    assert References.delete(path, [0, 10, 20, 30, 40, 50]) == 6
    assert len(References.load(path, **DIGESTS).sample_ids) == 0


def test_removing_people_leaves_the_original_as_it_was() -> None:
    references = _drawn()
    assert references.without([0, 30]).sample_ids.tolist() == [10, 20, 40, 50]
    assert len(references.sample_ids) == 6
    assert replace(references, seed=3).without([0]).seed == 3


def test_the_noise_floor_is_the_mean_of_pairs_of_true_retrainings() -> None:
    people = Hasty(users=8, each=4, hidden=6)
    retain, score = people.samples_of(*range(6)), people.samples_of(6, 7)
    kept: dict[int, dict[str, Tensor]] = {}
    floor = noise_floor(
        people, retain, score, seeds=[3, 1, 2], law="softmax", keep=lambda s, w: kept.update({s: dict(w)})
    )
    assert list(kept) == [3, 1, 2]
    inputs, _ = people.fetch(score)
    logs: dict[int, Tensor] = {}
    for seed, weights in kept.items():
        module = people.build()
        module.load_state_dict(weights)
        logs[seed] = module(inputs).log_softmax(-1).detach()
    by_hand = {
        (a, b): float((logs[a].exp() * (logs[a] - logs[b])).sum(-1).mean())
        for a, b in itertools.permutations([3, 1, 2], 2)
    }
    assert floor.pairs == pytest.approx(by_hand, rel=1e-4)
    values = torch.tensor(list(by_hand.values()), dtype=torch.float64)
    assert floor.mean == pytest.approx(float(values.mean()), rel=1e-4)
    assert floor.spread == pytest.approx(float(values.std()), rel=1e-4)
    symmetric = [(by_hand[a, b] + by_hand[b, a]) / 2 for a, b in [(1, 2), (3, 2), (3, 1)]]  # 3, 1, 2 left out in turn
    centre = sum(symmetric) / 3
    assert floor.standard_error == pytest.approx(math.sqrt(2 / 3 * sum((v - centre) ** 2 for v in symmetric)), rel=1e-4)
    assert floor.samples == 8


@pytest.mark.parametrize("seeds", [[], [1, 2], [1, 2, 2]])
def test_fewer_than_three_different_retrainings_give_no_floor(seeds: list[int]) -> None:
    with pytest.raises(TooFewRetrainings):
        noise_floor(Witness(), [0], [1], seeds=seeds, law="plain")


def test_people_held_out_depend_on_the_seed_and_not_on_the_order() -> None:
    users = [f"user-{n}" for n in range(40)]
    members, held_out = choose_held_out(users, 0.25, seed=1)
    assert len(held_out) == 10
    assert sorted(members + held_out) == sorted(users)
    assert [u for u in users if u in held_out] == held_out
    assert set(choose_held_out(users[::-1], 0.25, seed=1)[1]) == set(held_out)
    assert set(choose_held_out(users, 0.25, seed=2)[1]) != set(held_out)


def test_canaries_come_from_fair_and_independent_coins() -> None:
    users = list(range(300))
    inside, outside = draw_canaries(users, count=200, seed=4)
    assert len(inside) + len(outside) == 200
    assert set(inside).isdisjoint(outside)
    draws = [draw_canaries(users, count=200, seed=seed) for seed in range(100)]
    sizes = torch.tensor([len(trained_on) for trained_on, _ in draws], dtype=torch.float64)
    assert abs(float(sizes.mean()) - 100) < 3.3 * math.sqrt(50 / 100), "binomial(200, 1/2): standard error 0.7"
    assert 25 < float(sizes.var()) < 85, "binomial(200, 1/2): variance 50 ± 7"
    chosen = torch.zeros(300)
    for side in itertools.chain(*draws):
        chosen[side] += 1
    assert 66.7 - 20 < float(chosen.min()) <= float(chosen.max()) < 66.7 + 20, "a canary in 2 of 3 draws: 66.7 ± 4.7"


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(NotDealable, match="0 of 3"):
        choose_held_out([1, 2, 3], 0.1, seed=0)
    with pytest.raises(NotDealable, match="3 of 3"):
        choose_held_out([1, 2, 3], 1.0, seed=0)
    with pytest.raises(NotDealable, match="2 different"):
        choose_held_out([1, 2, 2], 0.4, seed=0)
    for users, count in (([1, 2], 3), ([1, 2], 0), ([1, 1], 1)):
        with pytest.raises(NotDealable):
            draw_canaries(users, count=count, seed=0)
