"""The operator's list of recipes: what it may say, and what is told when it is wrong."""

import stat
import sys
import textwrap
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import Misconfigured
from workers import recipes

MODULE = """
    class Recipe:
        l2_per_sample = 0.0
        l2_total = 1.0
        def build(self): return "built"
        def fetch(self, ids): return ids, ids
        def loss(self, outputs, targets): return outputs

    ready = Recipe()
    def make(): return Recipe()

    class Callable(Recipe):
        def __call__(self): raise AssertionError("a recipe must not be called")
    callable_one = Callable()

    class NoLoss(Recipe):
        loss = None
    class Half:
        def build(self): return None
        l2_total = 0
    class Negative(Recipe):
        l2_total = -1.0
    class Texts(Recipe):
        l2_per_sample = "0.1"
    class Still(Recipe):
        lr, batch_size, epochs = 1e-3, 0, 3
    class Lawless(Recipe):
        law = "poisson"
    class DeadTrain(Recipe):
        train = 5
    def fails(): raise RuntimeError("no data here")
    def needs(argument): return Recipe()
    number = 7
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An operator's package on the import path."""
    (tmp_path / "acme_models").mkdir()
    (tmp_path / "acme_models" / "__init__.py").write_text("")
    (tmp_path / "acme_models" / "wages.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "acme_models" / "broken.py").write_text("1 / 0")
    (tmp_path / "acme_models" / "wants.py").write_text("import package_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("acme_models")]:
        del sys.modules[name]


@pytest.fixture
def listing(tmp_path):
    return tmp_path / "recipes.toml"


@pytest.mark.parametrize("attribute", ["Recipe", "ready", "make", "callable_one"])
def test_a_recipe_may_be_an_instance_a_class_or_a_function(package, listing, attribute):
    listing.write_text(f'[recipes]\n"wages" = "acme_models.wages:{attribute}"\n')
    assert recipes.load(listing, "wages").fetch([1, 2]) == ([1, 2], [1, 2])


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("acme_models.wages:Recipee", "has no Recipee"),
        ("acme_models.wagers:Recipe", "No module named 'acme_models.wagers'"),
        ("acme_models.broken:Recipe", "importing acme_models.broken failed: ZeroDivisionError"),
        ("acme_models.wants:Recipe", "No module named 'package_that_is_not_there'"),
        ("acme_models.wages:Half", "it lacks fetch, loss, l2_per_sample"),
        ("acme_models.wages:NoLoss", "loss can't be called"),
        ("acme_models.wages:DeadTrain", "train can't be called"),
        ("acme_models.wages:Negative", "l2_total must be a number of at least 0"),
        ("acme_models.wages:Texts", "l2_per_sample must be a number"),
        ("acme_models.wages:Still", "batch_size must be a number above 0"),
        ("acme_models.wages:Lawless", "law is 'poisson' and must be one of softmax, plain"),
        ("acme_models.wages:fails", "RuntimeError: no data here"),
        ("acme_models.wages:needs", "TypeError"),
        ("acme_models.wages:number", "it lacks build, fetch, loss"),
        ("acme_models.wages", "has not the form package.module:name"),
        ("os;evil:x", "has not the form package.module:name"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told_with_its_file_and_name(package, listing, reference, told):
    listing.write_text(f'[recipes]\n"wages" = "{reference}"\n')
    with pytest.raises(Misconfigured) as caught:
        recipes.load(listing, "wages")
    assert told in str(caught.value)
    assert str(listing) in str(caught.value)
    assert "wages" in str(caught.value)


def test_a_model_that_is_not_listed_is_told_what_to_write(listing):
    listing.write_text("[recipes]\n")
    with pytest.raises(Misconfigured, match='add a line "wages" ='):
        recipes.load(listing, "wages")


@pytest.mark.parametrize("content", ["[recipes", 'recipes = "x"', "[recipes]\nwages = 5", b"\xff"])
def test_a_list_that_is_no_list_is_refused(listing, content):
    listing.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Misconfigured, match=r"list of recipes|must be TOML"):
        recipes.load(listing, "wages")


def test_a_missing_list_is_told_by_its_path(listing):
    with pytest.raises(Misconfigured, match=str(listing)):
        recipes.load(listing, "wages")


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@given(st.lists(st.tuples(names, st.sampled_from(["a.b:c", "d:e", "f.g.h:i"])), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_remembered_is_in_the_list_and_the_others_stay(tmp_path, entries):
    listing = tmp_path / "deep" / "recipes.toml"
    listing.unlink(missing_ok=True)
    for name, reference in entries:
        recipes.remember(listing, name, reference)
    assert tomllib.loads(listing.read_bytes().decode())["recipes"] == dict(entries)
    assert [path.name for path in listing.parent.iterdir()] == ["recipes.toml"]


def test_remembering_keeps_comments_other_tables_and_the_files_mode(listing):
    listing.write_text('# ours\n[recipes]\n"a" = "m:x"  # first\nb = "m:y"\n\n[other]\nkey = 1\n')
    listing.chmod(0o640)
    recipes.remember(listing, "b", "m:z")
    recipes.remember(listing, "c", "m:w")
    text = listing.read_text()
    assert text == '# ours\n[recipes]\n"c" = "m:w"\n"a" = "m:x"  # first\n"b" = "m:z"\n\n[other]\nkey = 1\n'
    assert stat.S_IMODE(listing.stat().st_mode) == 0o640


def test_a_list_too_free_to_be_edited_is_left_alone(listing):
    text = 'recipes = { a = "m:x" }\n'
    listing.write_text(text)
    with pytest.raises(Misconfigured, match="yourself"):
        recipes.remember(listing, "b", "m:y")
    assert listing.read_text() == text


def test_a_reference_of_another_form_is_not_written(listing):
    with pytest.raises(Misconfigured, match=r"package\.module:name"):
        recipes.remember(listing, "a", "not a reference")
    assert not listing.exists()
