"""What an owner hears when the recipe or a file breaks: at registration where that is cheap, else rung by rung."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn

from app.errors import Invalid
from tests import noisy, toy
from workers import calibrated, register, step
from workers.registry import Store
from workers.shelf import REFERENCES, Shelf
from workers.unlearning import Objective, RecipeMisbehaves, ekfac
from workers.unlearning.model import Model
from workers.unlearning.references import References

HERE = "tests.unit.unlearning.test_step"
GONE, REST = [4, 5, 6, 7], list(range(8, 40))


class Breaking(toy.Toy):
    """Raises what torch or an owner's code raises, with a person's name in it, wherever samples are scored."""

    error: Exception = IndexError("Ada Lovelace is out of bounds")

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        raise self.error


class Short(Breaking):
    error = MemoryError("12 GiB")


class ShortOnTheCard(Breaking):
    error = torch.OutOfMemoryError("12 GiB")


class Away(Breaking):
    error = ConnectionError("the dataset's host is away")


class Sound(toy.Toy):
    pass


@pytest.fixture
def house(tmp_path: Path) -> dict[str, Any]:
    """An order for a model of this test, without a database."""
    listed = "".join(
        f'"{kind.__name__}" = "{HERE}:{kind.__name__}"\n' for kind in (Breaking, Short, ShortOnTheCard, Away, Sound)
    )
    (tmp_path / "recipes.toml").write_text(f"[recipes]\n{listed}")
    url = f"file://{tmp_path}/store"
    base = Store(url).put({"weight": toy.solved([*GONE, *REST])})
    order = {"recipes": str(tmp_path / "recipes.toml"), "store": url, "base": base, "residual": None, "seed": 1}
    return order | {"calibration": None, "refresh_factors": False, "forget": [GONE], "retain": REST}


@pytest.mark.parametrize("rung", ["influence", "renewal"])
def test_what_an_owners_code_dies_of_hands_over_to_the_next_rung(
    house: dict[str, Any], rung: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if rung == "renewal":  # without references it would refuse before it reads a sample
        monkeypatch.setitem(step.RUNGS, "renewal", step.RUNGS["influence"])
    with capture_logs() as lines:
        answer = step.unlearn(house | {"model": "Breaking", "rung": rung}, lambda _: None)
    assert (answer["weights"], answer["can_retrain"]) == (None, True)
    assert "IndexError" in answer["refused"]
    told = capfd.readouterr()
    [line] = lines
    assert line["kind"] == "IndexError"
    assert line["place"].startswith(f"{__file__}:")
    assert "Ada" not in str(lines)
    assert "Ada" not in answer["refused"] + told.err + told.out


def test_the_last_rung_has_no_next_one(house: dict[str, Any]) -> None:
    with pytest.raises(IndexError):
        step.unlearn(house | {"model": "Breaking", "rung": "retrain"}, lambda _: None)


@pytest.mark.parametrize("recipe", [Short, ShortOnTheCard, Away])
def test_what_may_pass_by_itself_is_tried_again(house: dict[str, Any], recipe: type[Breaking]) -> None:
    with pytest.raises(type(recipe.error)):
        step.unlearn(house | {"model": recipe.__name__, "rung": "influence"}, lambda _: None)


def calibrated_house(house: dict[str, Any]) -> dict[str, Any]:
    recipe, people = Sound(), sorted([*GONE, *REST])
    values = toy._values().reshape(-1)[people].float().expand(2, -1)[..., None].contiguous()
    bound = {"weights": house["base"], "manifest": "m" * 64}
    refs = References(torch.tensor(people), values, folds=2, seed=0)
    model = Model(recipe, Store(house["store"]).get(house["base"]))
    factors = ekfac.fit(Objective(model, REST), model.theta_P)
    files = {
        "references": calibrated.keep_references(house["store"], refs, **bound),
        "factors": calibrated.keep_factors(house["store"], factors, **bound),
    }
    return house | {
        "model": "Sound",
        "rung": "influence",
        "calibration": {**bound, **files, "fitted_to": house["base"], "law": "plain"},
    }


@pytest.mark.parametrize(("file", "shelf"), [("references", REFERENCES), ("factors", "blobs")])
def test_a_damaged_file_on_the_shelf_tells_which_command_makes_a_new_one(
    house: dict[str, Any], file: str, shelf: str
) -> None:
    order = calibrated_house(house)
    assert step.unlearn(order, lambda _: None)["update"]["method"] == "projection"
    path = Path(Shelf(order["store"], shelf).place(order["calibration"][file]))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        Invalid, match=rf"the {file} of Sound can't be used, run `expunge models calibrate Sound` again"
    ):
        step.unlearn(order, lambda _: None)


def test_references_bound_to_another_version_tell_so_too(house: dict[str, Any]) -> None:
    order = calibrated_house(house)
    order["calibration"]["manifest"] = "n" * 64
    with pytest.raises(Invalid, match=r"run `expunge models calibrate Sound` again.*manifest_digest"):
        step.unlearn(order, lambda _: None)


class InTuple(toy.Toy):
    def build(self) -> nn.Module:
        return _Pair(toy.MEMBERS + toy.STRANGERS, 1, bias=False, dtype=torch.float64)

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        return super().loss(outputs[0], targets)


class _Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # the owner's habit
        return super().forward(x), x


class Spread(toy.Toy):
    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        return super().loss(outputs, targets).mean().expand(len(targets))


IDS: Sequence[int] = [i for person in range(40) for i in toy.samples_of(person)]


@pytest.mark.parametrize(("recipe", "sentence"), [(InTuple(), "returned a tuple"), (Spread(), "depends on the others")])
def test_a_recipe_that_breaks_the_protocol_is_refused_at_registration(recipe: toy.Toy, sentence: str) -> None:
    with pytest.raises(RecipeMisbehaves, match=sentence):
        register._uncovered(recipe, {"weight": toy.solved(IDS[::3])}, list(IDS))


def test_what_the_engine_does_not_cover_is_told_at_registration() -> None:
    recipe = noisy.Counting()
    weights = {"weight": toy.solved(IDS), "seen": torch.zeros((), dtype=torch.float64)}
    told = register._uncovered(recipe, weights, list(IDS))
    assert told
    assert "training moves the buffers ['seen']" in told
    outlook = register._outlook(recipe, Loaded(), told)
    assert "every request will be retrained: training moves" in outlook
    assert register._uncovered(toy.Toy(), {"weight": toy.solved(IDS)}, list(IDS)) is None


class Loaded:
    """What an import counted; people enough."""

    heldout_users = 120
