"""Renewal: what it reads, what it holds still, and that a memory it took does not come back where a step's does."""

import pytest
import torch
from torch import Tensor, nn

from workers.unlearning.errors import NotCovered
from workers.unlearning.model import Progress
from workers.unlearning.references import References, cross_fit
from workers.unlearning.renewal import Renewal, ordinary_epoch, renew
from workers.unlearning.testing import Classification

pytestmark = pytest.mark.slow  # seconds each: make check leaves them to make test


class Habits(Classification):
    """People with habits, learned by heart by mini-batches of Adam."""

    lr, batch_size, epochs = 0.01, 16, 150.0

    def train(self, sample_ids: object, *, seed: int, progress: Progress) -> nn.Module:
        ids = list(sample_ids)  # type: ignore[call-overload]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.build()
        module.load_state_dict(ordinary_epoch(self, module.state_dict(), ids, seed=seed, epochs=self.epochs))
        progress(1.0)
        return module


def people() -> Habits:
    return Habits(users=12, each=8, hidden=48, stubbornness=0.8, seed=1, l2_total=0.0)


def loss_on(bed: Habits, weights: dict[str, Tensor], ids: list[int]) -> float:
    module = bed.build()
    module.load_state_dict(weights)
    inputs, targets = bed.fetch(ids)
    return float(bed.loss(module(inputs), targets).mean().detach())


@pytest.fixture(scope="module")
def fixture() -> tuple[Habits, dict[str, Tensor], References]:
    bed = people()
    everyone = bed.samples_of(*range(12))
    weights = bed.train(everyone, seed=0, progress=lambda _: None).state_dict()
    refs = cross_fit(bed, [bed.samples_of(u) for u in range(12)], folds=4, repeats=2, directory=None)
    return bed, {name: tensor.detach().clone() for name, tensor in weights.items()}, refs


def test_a_known_person_is_a_stranger_again_and_stays_one_after_an_epoch(fixture) -> None:
    bed, weights, refs = fixture
    gone, kept = bed.samples_of(0), bed.samples_of(*range(1, 12))
    retrained = [loss_on(bed, bed.train(kept, seed=s, progress=lambda _: None).state_dict(), gone) for s in (1, 2, 3)]
    update = renew(bed, weights, forget_ids=gone, retain_ids=kept, references=refs, law="softmax", seed=5)
    again = ordinary_epoch(bed, update.weights, kept, seed=6)
    assert loss_on(bed, weights, gone) < 0.1 * min(retrained), "there was something to forget"
    assert loss_on(bed, again, gone) > 0.3 * min(retrained)
    assert loss_on(bed, again, kept) < 0.5
    assert update.report.method == "renewal"


def test_the_work_is_counted_batch_by_batch(fixture) -> None:
    bed, weights, refs = fixture
    gone, kept = bed.samples_of(0), bed.samples_of(*range(1, 12))
    update = renew(
        bed,
        weights,
        forget_ids=gone,
        retain_ids=kept,
        references=refs,
        law="softmax",
        seed=5,
        settings=Renewal(share=2 / 150, pull_share=0.25),
    )
    assert update.report.forward_backwards == 2 * 88 + 12 * 4, "two passes over R; 12 batches, 4 of S beside each"


def test_the_same_seed_gives_the_same_bits_and_disturbs_nobody(fixture) -> None:
    bed, weights, refs = fixture
    gone, kept = bed.samples_of(3), bed.samples_of(0, 1, 2, 4, 5)
    state = torch.random.get_rng_state()
    one, two = (
        renew(bed, weights, forget_ids=gone, retain_ids=kept, references=refs, law="softmax", seed=5).weights
        for _ in range(2)
    )
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_recipe_that_does_not_tell_how_it_trains_is_refused(fixture) -> None:
    bed, weights, refs = fixture
    silent = Classification(users=12, each=8, hidden=48, stubbornness=0.8, seed=1, l2_total=0.0)
    with pytest.raises(NotCovered, match="lr, batch_size and epochs"):
        renew(
            silent,
            weights,
            forget_ids=bed.samples_of(0),
            retain_ids=bed.samples_of(1, 2),
            references=refs,
            law="softmax",
            seed=5,
        )
