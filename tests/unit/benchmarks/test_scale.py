"""The benchmarks of cost, memory and GPUs still run, and count what they say they count."""

import pytest
import torch

from benchmarks import gpu, networks, scale
from benchmarks.beds.common import state
from workers.unlearning import ekfac
from workers.unlearning.calibration import predict
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective

pytestmark = pytest.mark.slow  # trains and fits


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def spent_on_one_person(members: int) -> scale.Spent:
    bed = scale.Population(members)
    bed.epochs = 1
    weights = state(bed.train(bed.training_ids, seed=0))
    model, ids = Model(bed, weights), bed.members[0]
    other = state(bed.train(bed.without([0]), seed=1))
    return scale.projected(
        bed,
        weights,
        (0,),
        references=scale.by_hand([predict(bed, other, ids)], ids),
        factors=ekfac.fit(Objective(model, bed.training_ids), model.theta_P),
    )


def test_a_person_costs_the_same_work_whatever_the_training_set():
    few, many = spent_on_one_person(10), spent_on_one_person(30)
    for spent, kept in ((few, 9 * scale.TRAINED), (many, 29 * scale.TRAINED)):
        # per forgotten sample: value, slope, 10 products, one for the residual, one for the bend, a value per trial
        each = 1 / 3 + 1 + 2 * (10 + 1 + 1) + len(spent.report.trials) / 3
        assert spent.report.forward_backwards == pytest.approx(scale.TRAINED * each)
        assert spent.share == pytest.approx(scale.TRAINED * each / kept)


def test_populations_of_any_size_follow_the_same_rule_and_nobody_is_in_two_places():
    few, many = scale.Population(3), scale.Population(8)
    assert [len(ids) for ids in few.members] == [20] * 3
    everyone = [*many.training_ids, *many.test_ids, *(i for ids in many.strangers for i in ids)]
    assert sorted(everyone) == list(range(len(many.targets)))
    assert parameters(few.build()) == 12 * 64 + 64 + 64 * 3 + 3


def test_the_networks_have_the_published_sizes():
    with torch.device("meta"):
        size = networks.Size()
        texts = networks.Causal(vocabulary=size.vocabulary, length=32, depth=size.depth, model=size.model)
        assert parameters(networks.ResNet18()) == 11_173_962  # ResNet-18 with a 3 × 3 stem and 10 classes
        assert parameters(texts) >= 100_000_000


def test_no_token_sees_a_later_one():
    torch.manual_seed(0)
    module = networks.Causal(vocabulary=7, length=5, depth=2, model=8)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 6, 0]])
    assert torch.allclose(module(tokens)[:, :3], module(changed)[:, :3], atol=1e-6)
    assert not torch.allclose(module(tokens)[:, 3:], module(changed)[:, 3:], atol=1e-3)


def test_the_gpu_script_runs_in_miniature_on_the_cpu(capsys):
    gpu.main(["--tiny", "--device", "cpu"])
    told = dict(line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines())
    for network in ("ResNet-18", "causal transformer"):
        assert float(told[f"{network}: retraining, seconds per epoch"]) > 0
        # bfloat16 has 8 bits: products differ from float32, by little
        away = float(told[f"{network}: GGN product, bf16 against float32, relative difference"])
        assert 0 < away < 0.2
        assert f"{network}: renewal, seconds" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_script_says_so_and_ends(capsys):
    gpu.main([])
    assert capsys.readouterr().out == "This machine has no CUDA GPU, so nothing was measured.\n"


def test_the_transformer_is_weighed_in_miniature():
    told = scale.transformer(networks.TINY)
    assert told["moving"] == 16**2 + 16 + 4 * 16  # one linear layer with its bias, two norms
    assert told["peak_gigabytes"] >= told["before_gigabytes"] > 0
