"""A calibrated model on a real database: how it is calibrated, how jobs use it, and what is left of the people."""

import fcntl
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file

from app import catalog
from app.errors import BaseMoved, Conflict, Invalid, NotFound
from app.storage import versions
from app.storage.sessions import transaction
from tests import noisy, toy
from tests.pipeline import Bench, register
from tests.unit.unlearning.owners import Crash, Interrupted
from workers import calibrate as calibration
from workers import calibrated, erase, leftovers, torch_step, verdict_page
from workers import register as registration
from workers.shelf import REFERENCES, Shelf, folds_directory
from workers.unlearning import NotTrainable

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(empty: Bench) -> Bench:
    """The noisy toy model, calibrated."""
    noisy_model(empty)
    calibrate(empty)
    return empty


def noisy_model(bench: Bench, *, recipe: str = noisy.REFERENCE, strangers: int = toy.STRANGERS) -> None:
    """Register weights that one more training of the noisy model could have given."""
    weights, manifest = toy.write_model(bench.house.directory, strangers=strangers)
    save_file({"weight": noisy.scattered(load_file(weights)["weight"], seed=2**31)}, weights)
    with Progress(disable=True) as bars:
        registration.register(
            bench.ctx, name="toy", recipe=recipe, weights=weights, manifest=manifest, unlearn=False, bars=bars
        )


def conspicuous(many: int) -> list[int]:
    """The people whom a test sees best."""
    return toy._values()[: toy.MEMBERS].mean(1).argsort(descending=True)[:many].tolist()


def calibrate(bench: Bench, *, folds: int = 2, repeats: int = 4) -> str:
    with Progress(disable=True) as bars:
        return calibration.calibrate(bench.ctx, name="toy", folds=folds, repeats=repeats, bars=bars)


def rows(bench: Bench) -> set[int]:
    """Samples with references of the live version, read from its file."""
    held = bench.live().calibration
    assert held
    path = Shelf(bench.ctx.settings.store_url, REFERENCES).place(held["references"])
    return set(load_file(path)["sample_ids"].tolist())


def reference_files(bench: Bench) -> list[Path]:
    return sorted(Path(Shelf(bench.ctx.settings.store_url).root).glob("references/*/*/*"))


def report(bench: Bench) -> dict[str, Any]:
    told = bench.live().report
    assert told
    return told


def forget(bench: Bench, *people: int) -> list[UUID]:
    ids = [bench.demand(person) for person in people]
    bench.run_all()
    assert {bench.request(i).status for i in ids} == {"completed"}, [bench.request(i).reason for i in ids]
    return ids


def samples_of(*people: int) -> set[int]:
    return {i for person in people for i in toy.samples_of(person)}


def test_a_calibrated_version_knows_everybodys_out_of_fold_predictions(bench: Bench) -> None:
    held = bench.live().calibration
    assert held is not None
    assert (held["law"], held["folds"], held["repeats"], held["users_at"]) == ("plain", 2, 4, toy.MEMBERS)
    assert rows(bench) == samples_of(*range(toy.MEMBERS + toy.STRANGERS))
    assert ("model", "model.calibrated") in bench.trail()
    assert not list(folds_directory(bench.ctx.settings.store_url, bench.ctx.settings.home).glob("*"))


def test_the_first_rung_projects_and_the_new_version_knows_nothing_of_the_person(bench: Bench) -> None:
    before = reference_files(bench)
    forget(bench, 3)
    assert (report(bench)["rung"], report(bench)["update"]["method"]) == ("influence", "projection")
    assert report(bench)["verdict"]["level"] == "A2"
    gate = report(bench)["verdict"]["gates"][-1]
    assert gate["statistic"] == "calibrated"
    assert rows(bench) == samples_of(*range(toy.MEMBERS + toy.STRANGERS)) - samples_of(3)
    assert len(reference_files(bench)) == 1
    assert reference_files(bench) != before  # the old file, with the person in it, is gone
    moved = bench.live_weights()[0]
    assert abs(moved[3]) < 0.3 * toy._values()[3].mean()


def test_the_processes_themselves_do_the_same(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy_model(empty)
    done = empty.house.cli("models", "calibrate", "toy", "--folds", "2", "--repeats", "2")
    assert done.returncode == 0, done.stderr
    assert "toy version 1 is calibrated: 4 trainings, 400 people and 120 strangers" in done.stderr
    monkeypatch.setattr(erase, "run_step", torch_step.run_step)
    (person,) = conspicuous(1)
    forget(empty, person)
    assert report(empty)["update"]["method"] == "projection"
    assert rows(empty).isdisjoint(samples_of(person))


def test_a_recipe_with_a_pace_has_its_candidates_tested_for_resurrection(empty: Bench) -> None:
    noisy_model(empty, recipe="tests.noisy:Paced")
    calibrate(empty)
    forget(empty, 3)
    verdict = report(empty)["verdict"]
    assert report(empty)["rung"] == "influence"
    assert "resurrection" in verdict["gates"][-1]
    assert not [test for test in verdict["not_run"] if test.startswith("relearning")]


def test_a_stream_of_people_goes_on_from_version_to_version(bench: Bench) -> None:
    people = conspicuous(2)
    for person in people:
        forget(bench, person)
        assert report(bench)["update"]["method"] == "projection"
    assert rows(bench).isdisjoint(samples_of(*people))


def test_what_influence_cannot_show_tries_renewal_and_ends_with_retraining(empty: Bench) -> None:
    """Without strangers no gate can tell; this recipe has no pace, so renewal refuses."""
    noisy_model(empty, strangers=0)
    calibrate(empty)
    fitted_to = (empty.live().calibration or {})["fitted_to"]
    forget(empty, 1)
    told = report(empty)
    assert [told["rung"], told["earlier"]["rung"], told["earlier"]["earlier"]["rung"]] == [
        "retrain",
        "renewal",
        "influence",
    ]
    held = empty.live().calibration
    assert held is not None
    assert fitted_to != held["fitted_to"] == empty.live().weights  # the curvature is the retrained model's
    assert (held["users_at"], held["fitted_at_version"]) == (toy.MEMBERS - 1, 2)
    assert rows(empty).isdisjoint(samples_of(1))


def test_beyond_a_fifth_of_the_people_the_job_begins_with_retraining(empty: Bench) -> None:
    register(empty, without=range(20, toy.MEMBERS))
    forget(empty, 3, 4, 6, 7)
    assert (report(empty)["rung"], empty.live().origin) == ("influence", "unlearned")
    forget(empty, 8)
    assert (report(empty)["rung"], empty.live().origin) == ("retrain", "retrained")
    assert "earlier" not in report(empty)
    assert report(empty)["ledger"]["reason"] == "25 % of the people are gone since the last training: retraining"
    forget(empty, 9)  # the count began anew
    assert report(empty)["rung"] == "influence"


def test_beyond_a_twentieth_the_factors_are_fitted_anew_and_travel_on(empty: Bench) -> None:
    noisy_model(empty)
    calibrate(empty)
    before = empty.live().calibration or {}
    *first, last = conspicuous(22)
    forget(empty, *first)
    after = empty.live().calibration or {}
    assert report(empty)["update"]["method"] == "projection"
    assert report(empty)["ledger"]["refresh_factors"]
    assert after["factors"] != before["factors"]
    assert (after["users_at"], after["fitted_at_version"]) == (toy.MEMBERS - 21, 2)
    forget(empty, last)
    assert report(empty)["update"]["method"] == "projection"
    assert not report(empty)["ledger"]["refresh_factors"]
    assert (empty.live().calibration or {})["factors"] == after["factors"]


def test_a_rollback_to_references_that_are_gone_takes_the_newton_step(bench: Bench) -> None:
    forget(bench, 3)
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    bench.run_all()
    assert bench.undone() == []
    assert report(bench)["update"]["method"] == "newton"
    assert bench.live().calibration is None


def test_a_version_published_meanwhile_is_not_given_the_old_ones_calibration(empty: Bench) -> None:
    noisy_model(empty)
    old = empty.live()
    noisy_model(empty)
    with pytest.raises(BaseMoved, match="version 1 is no longer live"), transaction(empty.ctx.engine) as tx:
        versions.calibrate(tx, old, {})
    assert empty.live().calibration is None


def test_unfinished_folds_wait_and_those_of_a_retired_version_are_deleted(empty: Bench) -> None:
    noisy_model(empty)
    directory = folds_directory(empty.ctx.settings.store_url, empty.ctx.settings.home) / empty.live().id.hex
    directory.mkdir(parents=True)
    (directory / "fold-000-000.safetensors").write_bytes(b"")
    leftovers.sweep(empty.ctx)
    assert list(directory.iterdir())
    noisy_model(empty)
    leftovers.sweep(empty.ctx)
    assert not list(directory.iterdir())


def test_references_that_no_version_names_are_deleted_an_hour_later(bench: Bench) -> None:
    (named,) = reference_files(bench)
    orphan = named.parents[1] / "00" / f"{'0' * 64}.safetensors"
    orphan.parent.mkdir()
    orphan.write_bytes(b"")
    leftovers.sweep(bench.ctx)
    assert orphan.exists()
    long_ago = (bench.now() - timedelta(hours=2)).timestamp()
    os.utime(orphan, (long_ago, long_ago))
    os.utime(named, (long_ago, long_ago))
    leftovers.sweep(bench.ctx)
    assert reference_files(bench) == [named]


@pytest.fixture
def crashed(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Path]:
    """A calibration that ended after three of eight trainings, and where its folds wait."""
    monkeypatch.setattr(Interrupted, "trainings", 0)
    noisy_model(empty, recipe="tests.unit.unlearning.owners:Interrupted")
    with pytest.raises(Crash):
        calibrate(empty)
    monkeypatch.setattr(Interrupted, "ends_after", -1)
    return empty, unfinished(empty)


def unfinished(bench: Bench) -> Path:
    return folds_directory(bench.ctx.settings.store_url, bench.ctx.settings.home) / bench.live().id.hex


def test_a_calibration_goes_on_after_a_crash_and_trains_a_damaged_fold_anew(
    crashed: tuple[Bench, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    bench, directory = crashed
    damaged = directory / "fold-000-001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert "calibrated" in calibrate(bench)
    assert Interrupted.trainings == 3 + 5 + 1
    assert "fold-000-001.safetensors was damaged: it is trained anew" in capfd.readouterr().out
    assert not directory.exists()


def test_folds_of_a_recipe_that_changed_since_the_crash_are_not_used(
    crashed: tuple[Bench, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = crashed
    monkeypatch.setattr(Interrupted, "l2_total", 2e-3)
    calibrate(bench)
    assert Interrupted.trainings == 3 + 8


def test_of_two_calibrations_at_once_the_second_says_so_and_leaves_the_first_alone(
    crashed: tuple[Bench, Path],
) -> None:
    bench, directory = crashed
    before = sorted(directory.iterdir())
    with (directory.parent / f"{directory.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="toy is being calibrated by another process"):
            calibrate(bench)
        done = bench.house.cli("models", "calibrate", "toy", "--folds", "2", "--repeats", "2")
    assert done.returncode == 1
    assert "is being calibrated by another process" in done.stderr
    assert sorted(directory.iterdir()) == before
    assert "calibrated" in calibrate(bench)
    assert not list(directory.parent.iterdir())


@pytest.mark.parametrize(("error", "kept"), [(ConnectionError, True), (BaseMoved, False)])
def test_a_database_that_is_away_at_the_end_costs_no_training(
    empty: Bench, monkeypatch: pytest.MonkeyPatch, *, error: type[Exception], kept: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("at the last line")

    monkeypatch.setattr(Interrupted, "ends_after", -1)
    monkeypatch.setattr(Interrupted, "trainings", 0)
    noisy_model(empty, recipe="tests.unit.unlearning.owners:Interrupted")
    with monkeypatch.context() as broken:
        broken.setattr(versions, "calibrate", fail)  # what PostgreSQL does when it is gone, or has another version
        with pytest.raises(error):
            calibrate(empty, folds=2, repeats=2)
    assert unfinished(empty).exists() == kept
    calibrate(empty, folds=2, repeats=2)
    assert Interrupted.trainings == (4 if kept else 8)


def test_damaged_references_are_for_a_person_who_hears_which_command_helps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "run_step", torch_step.run_step)
    (path,) = reference_files(bench)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    request_id = bench.demand(3)
    bench.run_all()
    told = bench.request(request_id)
    assert told.status == "needs_attention"
    assert "run `expunge models calibrate toy` again" in str(told.reason)
    calibrate(bench)
    assert rows(bench) == samples_of(*range(toy.MEMBERS + toy.STRANGERS))


def test_one_number_per_sample_is_calibrated_and_projected(empty: Bench) -> None:
    noisy_model(empty, recipe="tests.unit.unlearning.owners:Flat")
    calibrate(empty)
    forget(empty, 3)
    assert (report(empty)["rung"], report(empty)["update"]["method"]) == ("influence", "projection")


def test_a_model_that_the_engine_does_not_cover_is_registered_with_a_warning(empty: Bench) -> None:
    weights, manifest = toy.write_model(empty.house.directory, recipe_of=noisy.Counting())
    model = ("--recipe", "tests.noisy:Counting", "--weights", str(weights), "--manifest", str(manifest))
    done = empty.house.cli("models", "register", "counting", *model)
    assert done.returncode == 0, done.stderr
    assert "the engine does not cover this model, every request will be retrained: training moves" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "folds", "error", "sentence"),
    [
        ("tests.toy:Untrainable", 2, NotTrainable, "no train"),
        (noisy.REFERENCE, toy.MEMBERS + 1, Invalid, "401 folds need at least as many people; there are 400"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_a_sentence(
    empty: Bench, recipe: str, folds: int, error: type[Exception], sentence: str
) -> None:
    register(empty, recipe=recipe)
    with pytest.raises(error, match=sentence):
        calibrate(empty, folds=folds)
    assert empty.live().calibration is None


def test_a_model_that_nobody_registered_cannot_be_calibrated(empty: Bench) -> None:
    with pytest.raises(NotFound):
        calibrate(empty)
    done = empty.house.cli("models", "calibrate", "nobody")
    assert done.returncode == 1
    assert "no model of this name" in done.stderr


def test_people_who_share_a_sample_are_dealt_together() -> None:
    assert calibration._apart([[1, 2], [5], [2, 3], [9, 5], [7]]) == [[1, 2, 3], [5, 9], [7]]


def test_references_do_not_cover_a_person_whom_they_lost(bench: Bench) -> None:
    url, held = bench.ctx.settings.store_url, bench.live().calibration
    assert calibrated.references(url, held, model="toy", covering=toy.samples_of(1)) is not None
    assert calibrated.references(url, held, model="toy", covering=[10**9]) is None
    assert torch.is_tensor(calibrated.references(url, held, model="toy", covering=()).outputs)


def test_the_verdict_on_a_version_is_a_page_and_one_without_a_verdict_is_refused(bench: Bench, tmp_path: Path) -> None:
    forget(bench, 3)
    number, output = bench.live().number, tmp_path / "verdict.html"
    verdict_page.write(bench.ctx, name="toy", number=number, output=output)
    told = output.read_text(encoding="utf-8")
    assert "A2" in told
    assert "<svg" in told
    assert "<script" not in told
    with pytest.raises(NotFound, match="not made by a deletion"):
        verdict_page.write(bench.ctx, name="toy", number=1, output=output)
    with pytest.raises(NotFound, match="no version 99"):
        verdict_page.write(bench.ctx, name="toy", number=99, output=output)
    assert output.read_text(encoding="utf-8") == told


def test_what_the_projection_cannot_read_is_renewed(empty: Bench) -> None:
    noisy_model(empty, recipe="tests.noisy:Renewable")
    calibrate(empty)
    forget(empty, *conspicuous(1))
    assert (report(empty)["rung"], empty.live().origin) == ("renewal", "unlearned")
    assert report(empty)["update"]["method"] == "renewal"
    assert "no forward-mode derivative" in report(empty)["earlier"]["refused"]
