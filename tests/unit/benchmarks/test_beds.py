"""The benchmark beds: who is who, that training is reproducible, and what each bed adds to the recipe protocol."""

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call, jvp

from benchmarks.beds import BEDS, Bed, DataAbsent
from benchmarks.beds.authors import ALPHABET, CANDIDATES, LINES, Authors
from benchmarks.beds.common import PADDED, data_file, split, state
from benchmarks.beds.digits import Digits
from benchmarks.beds.ratings import Ratings
from benchmarks.beds.wages import RIDGE, unusual
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective, check_coverage

pytestmark = pytest.mark.slow  # seconds each: make check leaves them to make test


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def opened() -> Callable[[str], Bed]:
    kept: dict[str, Bed] = {}

    def bed(name: str) -> Bed:
        if name not in kept:
            try:
                kept[name] = BEDS[name]()
            except DataAbsent as absent:
                pytest.skip(str(absent))
        return kept[name]

    return bed


@pytest.fixture(params=list(BEDS))
def bed(request, opened) -> Bed:
    return opened(request.param)


def untrained(bed: Bed, *, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return state(bed.build())


def test_seventy_percent_of_the_people_are_members_and_eighty_percent_of_their_rows_train():
    people = [person for person in range(20) for _ in range(10)]
    members, test_ids, strangers = split(people, seed=3)
    assert (len(members), len(strangers)) == (14, 6)
    assert {len(ids) for ids in members} == {8}
    assert len(test_ids) == 14 * 2
    assert sorted([*test_ids, *(i for ids in (*members, *strangers) for i in ids)]) == list(range(200))


def test_another_split_seed_deals_other_members_and_the_same_seed_the_same():
    people = [person for person in range(20) for _ in range(10)]
    assert split(people, seed=0) == split(people, seed=0)
    assert split(people, seed=0) != split(people, seed=1)


def test_absent_data_name_the_folder_that_was_looked_in(monkeypatch, tmp_path):
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    with pytest.raises(DataAbsent, match=str(tmp_path)):
        data_file("vowel", "vowel.npz")


def test_nobody_is_in_two_places(bed):
    everyone = [*bed.training_ids, *bed.test_ids, *(i for ids in bed.strangers for i in ids)]
    assert len(everyone) == len(set(everyone))
    assert not set(bed.memorised) & set(bed.ordinary)
    assert set(bed.without([0, 1])) == set(bed.training_ids) - {*bed.members[0], *bed.members[1]}


def test_the_engine_accepts_the_recipe(bed):
    ids = bed.members[0][:4]
    model = Model(bed, untrained(bed))
    objective = Objective(model, ids)
    check_coverage(objective)
    inputs, targets = bed.fetch(ids)
    mean = bed.mean_loss(untrained(bed), ids)
    assert objective.losses(model.theta_P).mean() == pytest.approx(mean, rel=1e-5)
    assert bed.loss(model.call(model.unflatten(model.theta_P), inputs), targets).shape == (4,)


def test_forward_mode_derivatives_agree_with_finite_differences(bed):
    module = bed.build().double().eval()
    inputs = bed.fetch(bed.members[0][:2])[0]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    torch.manual_seed(1)
    theta = {name: parameter.detach() for name, parameter in module.named_parameters()}
    along = {name: torch.randn_like(tensor) for name, tensor in theta.items()}

    def at(share):
        return functional_call(module, {name: theta[name] + share * along[name] for name in theta}, (inputs,))

    slope = jvp(lambda moving: functional_call(module, moving, (inputs,)), (theta,), (along,))[1]
    torch.testing.assert_close(slope, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-4, atol=1e-4)


def test_the_same_seed_trains_the_same_model_and_another_seed_another(bed, monkeypatch):
    monkeypatch.setattr(bed, "epochs", 1)
    ids = bed.training_ids[:64]
    first, again, other = (state(bed.train(ids, seed=seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_leaves_the_callers_random_state_alone(opened, monkeypatch):
    vowels = opened("vowel")
    monkeypatch.setattr(vowels, "epochs", 1)
    before = torch.get_rng_state()
    vowels.train(vowels.members[0], seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_training_tells_its_progress_up_to_one(opened, monkeypatch):
    vowels = opened("vowel")
    monkeypatch.setattr(vowels, "epochs", 2)
    shares: list[float] = []
    vowels.train(vowels.members[0], seed=0, progress=shares.append)
    assert all(early < late for early, late in pairwise(shares))
    assert shares[-1] == 1


def test_more_training_runs_the_asked_number_of_mini_batches_on_the_asked_loss(opened):
    vowels = opened("vowel")
    ids, weights = vowels.training_ids, untrained(vowels)
    seen: list[list[int]] = []

    def loss(outputs, targets, batch):
        seen.append(batch)
        assert torch.equal(targets, vowels.fetch(batch)[1])
        return outputs.square().sum(-1)

    before = {name: tensor.clone() for name, tensor in weights.items()}
    vowels.more(weights, ids, epochs=1, seed=0, loss=loss)
    assert len(seen) == math.ceil(len(ids) / vowels.batch_size)
    assert sorted(i for batch in seen for i in batch) == sorted(ids)
    seen.clear()
    vowels.more(weights, ids, epochs=0.25, seed=0, loss=loss)
    assert len(seen) == math.ceil(0.25 * math.ceil(len(ids) / vowels.batch_size))
    assert all(torch.equal(before[name], weights[name]) for name in weights)


def test_one_step_of_more_training_is_one_step_of_adam_on_the_penalised_mean_loss(opened):
    """Adam's first step is lr · g / (|g| + eps), elementwise: written out here."""
    wages = opened("wages")
    weights, ids = untrained(wages), wages.training_ids[: wages.batch_size]
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    inputs, targets = wages.fetch(ids)
    decay = sum(tensor.square().sum() for tensor in leaves.values())
    mean = wages.loss(functional_call(wages.build(), leaves, (inputs,)), targets).mean()
    grads = torch.autograd.grad(mean + 0.5 * wages.l2_per_sample * decay, list(leaves.values()))
    stepped = wages.more(weights, ids, epochs=1, seed=0, lr=0.01)
    for (name, before), grad in zip(weights.items(), grads, strict=True):
        expected = before - 0.01 * grad / (grad.abs() + 1e-8)
        clear = grad.abs() > 1e-5  # where rounding of g can't turn its sign
        torch.testing.assert_close(stepped[name][clear], expected[clear], rtol=0, atol=1e-4)


def test_a_model_is_no_distance_from_itself_and_kl_is_what_torch_computes(opened):
    vowels = opened("vowel")
    a, b, ids = untrained(vowels), untrained(vowels, seed=1), vowels.test_ids
    assert vowels.apart(a, a, ids) == 0
    p, q = (
        torch.distributions.Categorical(logits=vowels.loaded(each)(vowels.fetch(ids)[0]).detach()) for each in (a, b)
    )
    assert vowels.apart(a, b, ids) == pytest.approx(float(torch.distributions.kl_divergence(p, q).mean()), rel=1e-4)


def test_the_memorised_of_the_digits_are_those_with_most_wrong_labels(opened):
    digits = opened("digits")
    assert isinstance(digits, Digits)
    true = pytest.importorskip("sklearn.datasets").load_digits().target
    wrong = [sum(true[i] != digits.targets[i] for i in ids) / len(ids) for ids in digits.members]
    assert min(wrong[i] for i in digits.memorised) > 0.25 > 0.03 > max(wrong[i] for i in digits.ordinary)
    assert 0.05 < sum(true != digits.targets.numpy()) / len(true) < 0.15


def test_the_memorised_of_the_wages_are_those_a_linear_equation_misses():
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3
    y[12:16] += torch.tensor([4.0, -4.0, 4.0, -4.0])
    missed = unusual(x, y, 10 * [4])
    assert int(missed.argmax()) == 3
    augmented = torch.cat([x, torch.ones(40, 1)], dim=1)
    rows = torch.cat([augmented, math.sqrt(RIDGE) * torch.eye(4)]).double()
    solved = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(4)]).double()[:, None]).solution[:, 0]
    expected = (augmented.double() @ solved - y).square().reshape(10, 4).mean(1)
    torch.testing.assert_close(missed, expected)


def test_a_rating_is_changed_by_nobodys_rows_but_the_users_own(opened):
    ratings = opened("ratings")
    assert isinstance(ratings, Ratings)
    torch.manual_seed(0)
    weights = {name: torch.randn_like(tensor) for name, tensor in untrained(ratings).items()}
    erased = ratings.row_only(weights, 7)
    others = [
        i for i in range(len(ratings.targets)) if ratings.inputs[i, 0] != ratings.inputs[ratings.members[7][0], 0]
    ]
    assert torch.equal(ratings.outputs(weights, others), ratings.outputs(erased, others))
    assert not torch.equal(ratings.outputs(weights, ratings.members[7]), ratings.outputs(erased, ratings.members[7]))


def test_training_never_touches_the_rows_of_strangers(opened, monkeypatch):
    ratings = opened("ratings")
    monkeypatch.setattr(ratings, "epochs", 1)
    weights = state(ratings.train(ratings.training_ids[:512], seed=0))
    for name, rows in ratings.owned_rows([i for ids in ratings.strangers for i in ids]).items():
        assert not weights[name][rows].any()


def test_a_line_of_text_does_not_see_its_own_future(opened):
    authors = opened("authors")
    reader = authors.loaded(untrained(authors))
    codes = authors.inputs[:2].clone()
    before = reader(codes)
    codes[:, 20:] = 5
    after = reader(codes)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


def test_padding_counts_nothing(opened):
    authors = opened("authors")
    inputs, targets = authors.fetch(authors.members[0])
    outputs = authors.loaded(untrained(authors))(inputs).detach()
    logs = outputs.log_softmax(-1)
    by_hand = [
        -sum(logs[n, t, code] for t, code in enumerate(row.tolist()) if code != PADDED) for n, row in enumerate(targets)
    ]
    assert (targets == PADDED).any()
    torch.testing.assert_close(authors.loss(outputs, targets), torch.stack(by_hand))


def test_every_member_trains_on_the_own_canary_and_no_canary_is_a_test_row(opened):
    authors = opened("authors")
    assert isinstance(authors, Authors)

    def read(row):
        return "".join(ALPHABET[code] for code in authors.targets[row].tolist() if code > 0)

    secrets = {f"{name} code {secret}" for name, secret in authors.canaries}
    for ids in authors.members:
        author = ids[0] // LINES
        assert [read(i) for i in ids].count("{} code {}".format(*authors.canaries[author])) == 2
    assert not secrets & {read(i) for i in authors.test_ids}


def test_a_canary_known_by_heart_has_full_exposure_and_an_untrained_model_has_little(opened):
    authors = opened("authors")
    everyone = range(len(authors.members))
    fresh = untrained(authors)
    some = random.Random(0).sample(list(everyone), 3)
    drilled = authors.more(fresh, authors.members[some[0]][-2:], epochs=60, seed=0)
    assert authors.exposure(drilled, some[0]) == math.log2(CANDIDATES)
    assert sum(authors.exposure(fresh, i) for i in some) / 3 < 5
