"""The page parses, says what the verdict says, loads nothing, and lets no name out of its place."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from workers.unlearning import UpdateReport, Verdict
from workers.unlearning.report import Json
from workers.unlearning.verification import Gate
from workers.unlearning.verification.page import page

pytestmark = pytest.mark.slow  # draws

NASTY = 'north" <script>alert(1)</script> & $x^'
UPDATE = UpdateReport("newton", True, None, 6, 60, 2, step_norm=0.123).as_dict()
STANDINGS = {"strangers": [-1.0, 0.0, 1.0], "members": [2.0, 3.0], "users": [2.5]}


def _segment(name: str, outcome: str) -> Json:
    numbers = {"pairs": 90, "worsening": 0.01, "error": 0.02, "margin": 0.05, "accuracy": [0.9, 0.89]}
    return {"name": name, "outcome": outcome, **numbers}


def _verdict(**more: object) -> Json:
    forgetting = {
        "statistic": "calibrated", "users": 1, "strangers": 120, "members": 77, "alpha_each_tail": 0.01,
        "alpha_job_each_tail": 0.05, "power_on_members": 0.61, "power_interval_95": [0.5, 0.71],
        "statistics_before": STANDINGS, "statistics_after": STANDINGS, **more,
    }  # fmt: skip
    segments = [_segment(NASTY, "passed"), _segment("class 2, strangers", "not judged")]
    utility = {"alpha": 0.05, "segments": segments, "segments_not_judged": ["class 2, strangers"]}
    gates = Gate("G2 utility", "passed", "Fine.", utility), Gate("G3 forgetting", "passed", "Seen <it>.", forgetting)
    read_back: Json = json.loads(json.dumps(Verdict("passed", "A2", f"About {NASTY}", gates).as_dict()))
    return read_back


@pytest.fixture(scope="module")
def html() -> str:
    return page(_verdict(resurrection={"statistics": STANDINGS}), UPDATE, f"Model {NASTY}")


def _parsed(html: str) -> ET.Element:
    doctype, _, rest = html.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ET.fromstring(rest)


def test_the_page_is_well_formed_and_holds_every_id_once(html: str) -> None:
    ids = [element.get("id") for element in _parsed(html).iter() if element.get("id")]
    assert ids
    assert len(ids) == len(set(ids))
    used = {target for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html) for target in pair if target}
    assert used <= set(ids)


def test_the_page_runs_and_loads_nothing(html: str) -> None:
    tags = {element.tag.rpartition("}")[2] for element in _parsed(html).iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "a", "form"}
    values = [v for element in _parsed(html).iter() for k, v in element.items() if "href" in k or k == "src"]
    assert all(value.startswith("#") for value in values)
    assert "@import" not in html


def test_names_stay_text(html: str) -> None:
    assert "<script" not in html
    assert "About north&quot; &lt;script&gt;" in html
    assert _parsed(html).findtext(".//h1") == f"Model {NASTY}"


def test_the_page_says_what_was_found_with_which_errors_and_what_was_left_out(html: str) -> None:
    text = " ".join(_parsed(html).itertext())
    for told in ("may be published", "A2, verified", "61% of 77", "50% to 71%", "1.0% of cases", "model inversion"):
        assert told in text
    assert "1 classes or groups had too few samples" in text
    assert "cannot show that nothing is left" in text


def test_both_drawings_are_there_with_the_three_models(html: str) -> None:
    figures = _parsed(html).findall(".//figure")
    assert len(figures) == 2
    text = " ".join(figures[0].itertext())
    assert all(name in text for name in ("before", "after", "after one more epoch", "standardised confidence"))


def test_the_same_verdict_gives_the_same_page(html: str) -> None:
    assert page(_verdict(resurrection={"statistics": STANDINGS}), UPDATE, f"Model {NASTY}") == html


def test_a_verdict_that_ended_early_has_a_page_without_drawings() -> None:
    gate = Gate("G0 structure", "failed", "No weight has changed.", {"tensors_moved": 0})
    early = page(Verdict("failed", None, "G0 failed", (gate,)).as_dict(), UPDATE, "Early")
    text = " ".join(_parsed(early).itertext())
    assert "must not be published" in text
    assert "No weight has changed." in text
    assert not _parsed(early).findall(".//figure")


@pytest.mark.parametrize(
    "name", ["$x_{$ and $y", "income $10-$20", "a\x01b", "two\nlines", 'href="#a id="b', "\u202eabc", "--><b>"]
)
def test_whatever_a_group_is_called_the_page_is_well_formed_and_tells_it(name: str) -> None:
    verdict = _verdict()
    verdict["gates"][0]["segments"] = [_segment(f"group {name}", "failed")]
    verdict["sentence"] = f"{name} is worse"
    made = page(verdict, UPDATE, name)
    text = " ".join(" ".join(_parsed(made).itertext()).split())
    shown = " ".join(re.sub("[\x01\u202e]", "\ufffd", name).split())
    assert f"group {shown}" in text
    assert "\x01" not in made
    assert "\u202e" not in made


def test_a_statistic_that_is_null_is_left_out() -> None:
    holes = {"strangers": [None, 0.0], "members": [2.0, None], "users": [None]}
    verdict = _verdict(statistics_before=holes, resurrection={"statistics": holes})
    verdict["gates"][0]["segments"].append({**_segment("group x", "failed"), "worsening": None})
    assert len(_parsed(page(verdict, UPDATE, "Holes")).findall(".//figure")) == 2
    verdict["gates"][1]["power_on_members"] = None
    assert "Missed memories" not in page(verdict, UPDATE, "Holes")
