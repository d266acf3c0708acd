"""The rules that leaves are replayed by: each with a story that keeps it and the smallest one that breaks it alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from itertools import accumulate
from typing import Any

import pytest
from expunge_verify.leaf import LEVELS, SCHEMA_DIGEST, BadLeaf, decode, encode
from expunge_verify.requests import RULES, Replay, replay
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.verifier.building import (
    DUE,
    VKEY,
    Leaf,
    Teller,
    changing,
    completed,
    digest,
    ended,
    good_log,
    model,
    no_data,
    opening,
    partial,
    ref,
    reopened,
    shared,
    suspended,
)

IN_TIME = date(2027, 2, 28)
TOO_LATE = date(2027, 3, 1)
Story = list[Leaf]
Change = Callable[[Story], Story]


def told(story: Story, today: date | None = IN_TIME) -> Replay:
    return replay(enumerate(decode(encode(leaf)) for leaf in story), today)


def broken(story: Story, today: date | None = IN_TIME) -> list[str]:
    return sorted(violation.rule for violation in told(story, today).violations)


def place(story: Story, kind: str, number: int = 0) -> int:
    return [at for at, leaf in enumerate(story) if leaf["type"] == kind][number]


def without(*kinds: str) -> Change:
    return lambda story: [leaf for leaf in story if leaf["type"] not in kinds]


def changed(kind: str, number: int = 0, **fields: Any) -> Change:
    """One leaf with other fields; None takes a field away."""

    def change(story: Story) -> Story:
        at = place(story, kind, number)
        leaf = {name: value for name, value in {**story[at], **fields}.items() if value is not None}
        return [*story[:at], leaf, *story[at + 1 :]]

    return change


def moved(kind: str, before: str, number: int = 0) -> Change:
    """One leaf now stands before another."""

    def change(story: Story) -> Story:
        leaf = story[place(story, kind, number)]
        rest = [other for other in story if other is not leaf]
        at = place(rest, before)
        return [*rest[:at], leaf, *rest[at:]]

    return change


def added(kind: str, before: str | None, **fields: Any) -> Change:
    """One leaf more, before another or at the end."""

    def change(story: Story) -> Story:
        tell = Teller()
        tell.count = 1000
        at = len(story) if before is None else place(story, before)
        return [*story[:at], tell(kind, **fields), *story[at:]]

    return change


def added_twice(kind: str, before: str, **fields: Any) -> Change:
    """Two leaves more of a kind, with the same words."""
    fresh = {"nonce": "f" * 32, "commit": "f" * 64}
    return all_of(added(kind, before, **fields), added(kind, before, **fields, **fresh))


def all_of(*changes: Change) -> Change:
    def change(story: Story) -> Story:
        for one in changes:
            story = one(story)
        return story

    return change


def late(change: Change) -> Change:
    """What a change dates later, moves everything after it."""

    def caught_up(story: Story) -> Story:
        days = accumulate((leaf["day"] for leaf in change(story)), max)
        return [{**leaf, "day": day} for leaf, day in zip(change(story), days, strict=True)]

    return caught_up


def done(**fields: Any) -> Change:
    return changed("erasure.done", **fields)


def drop(story: Story, *places: int) -> Story:
    return [leaf for at, leaf in enumerate(story) if at not in places]


def added_second(story: Story) -> Story:
    """The key goes a second time, after the reopening."""
    at = place(story, "certificate.issued", 1)
    return [*story[:at], Teller()("key.shredded", ref=ref("a"), nonce="0" * 32), *story[at:]]


def a_story(name: str) -> Story:
    tell = Teller()
    stories = {
        "erased": lambda: completed(tell, "a"),
        "withdrawn": lambda: ended(tell, "a", "withdrawn"),
        "refused": lambda: ended(tell, "a", "refused"),
        "no data": lambda: no_data(tell, "a"),
        "shared": lambda: [*changing(tell), *shared(tell, "a")],
        "erased twice": lambda: [*completed(tell, "a"), *reopened(tell, "a")],
        "partial": lambda: partial(tell, "a"),
        "partial twice": lambda: [*partial(tell, "a"), *partly(reopened(tell, "a"))],
        "suspended": lambda: suspended(tell, "a"),
    }
    return [*opening(tell), *stories[name]()]


def partly(story: Story) -> Story:
    return changed("request.closed", outcome="partial")(story)


STORIES = (
    *("erased", "withdrawn", "refused", "no data", "shared", "erased twice"),
    *("partial", "partial twice", "suspended"),
)
EARLIEST = "sha256:46b7cd5cc1c69d96a89e9436a1627cebcc7cf9228297ef77d07d71fe7cfb9dc4"  # of issue 4
A, CERT = ref("a"), digest("certificate a")
EXTENDED = {"ref": A, "due": "2027-04-30"}
NO_DATA = {"model": model(after="m0"), "method": "no-data/1", "level": "none"}
UNCERTIFIED = all_of(without("certificate.issued"), changed("request.closed", cert=None))
ELSEWHERE = model("m9", "m1")
FROM_ELSEWHERE = all_of(
    added("model.registered", "request.received", model=model(after="m9")),
    changed("unlearn.done", model=ELSEWHERE),
    done(model=ELSEWHERE),
)
VERIFIED_FROM_ELSEWHERE = all_of(FROM_ELSEWHERE, changed("verify.passed", model=ELSEWHERE))
CLOSED_AGAIN_WITHOUT_DATA = all_of(
    lambda story: drop(story, *(place(story, *last) for last in AGAIN)),
    changed("request.closed", 1, outcome="no_data", cert=None),
)
AGAIN = (("erasure.started", 1), ("erasure.done", 2), ("certificate.issued", 1))
UNNAMED = changed("request.closed", cert=None)
SAME_CERTIFICATE = all_of(changed("certificate.issued", 1, cert=CERT), changed("request.closed", 1, cert=CERT))
UNCLOSED = without("request.closed", "key.backup_expired", "recipients.notified")

SET_ANEW = {"due": "2027-03-21", "day": "2027-02-21"}
SET_AFTER_EXTENSION = all_of(
    changed("request.identity_confirmed", due=DUE), added("request.extended", "request.identity_confirmed", **EXTENDED)
)

KEPT: list[tuple[str, Change]] = [
    ("erased", late(added("request.extended", "erasure.started", **EXTENDED, day=DUE))),
    ("erased", late(changed("request.closed", day="2027-03-01", in_time=False))),
    ("erased", changed("verify.passed", level="A0")),
    ("erased", changed("verify.passed", level="A1")),
    ("erased", all_of(changed("verify.passed", level="A1"), done(level="A1"))),
    ("erased", added("verify.passed", "request.received", model=model("m0", "m1"), level="A2")),
    ("erased", all_of(added("request.refused", "erasure.started", ref=A), partly)),
    ("partial", changed("erasure.done", **NO_DATA)),
    ("partial", added("request.refused", "erasure.started", ref=A)),
    ("withdrawn", added("request.refused", "request.withdrawn", ref=A)),
    ("erased", changed("request.identity_confirmed", due="2027-03-02")),
    ("suspended", added("request.extended", "erasure.started", ref=A, due="2027-05-21", day="2027-02-21")),
    ("suspended", changed("request.identity_confirmed", due="2027-03-25")),
    ("erased", changed("log.opened", schema=EARLIEST)),
    ("erased", moved("key.shredded", before="unlearn.done")),
    ("erased", moved("key.shredded", before="erasure.done")),
    ("erased", without("key.backup_expired", "recipients.notified", "request.identity_confirmed", "model.retired")),
    ("erased", added("log.key_rotated", "request.received", vkey=VKEY)),
    ("erased", added("model.rolled_back", "erasure.done", model=model("m1", "m1"))),
    ("erased", added("model.rolled_back", None, model=model("m1", "m0"))),
    ("erased", added("model.rolled_back", "unlearn.done", model=model("m1", "m0"))),
    ("erased", changed("request.received", due="2027-03-04")),
    ("erased", changed("request.closed", day="2027-01-30")),
    ("erased", added("request.extended", "erasure.started", ref=A, due="2027-05-05")),
    ("erased twice", changed("request.reopened", due="2027-05-02")),
    ("erased twice", moved("model.rolled_back", before="key.backup_expired")),
    ("erased", added("verify.failed", "verify.passed", model=model("m0", "m1"))),
    ("no data", UNCERTIFIED),
    ("withdrawn", added("erasure.started", "request.withdrawn", ref=A)),
    ("shared", done(model=model(after="m0"))),
    ("shared", all_of(without("model.promoted"), added("model.rolled_back", "erasure.done", model=model("m2", "m1")))),
]

BROKEN: list[tuple[str, str, Change]] = [
    ("opened-first", "erased", without("log.opened")),
    ("opened-first", "erased", moved("log.opened", before="request.received")),
    ("opened-first", "erased", added("log.opened", "request.received", vkey=VKEY, schema=SCHEMA_DIGEST)),
    ("schema-other", "erased", changed("log.opened", schema=digest("another schema"))),
    ("key-other", "erased", changed("log.opened", vkey=VKEY.replace("acme", "other"))),
    ("key-other", "erased", added("log.key_rotated", None, vkey=VKEY.replace("acme", "other"))),
    ("received-first", "erased", moved("request.identity_confirmed", before="request.received")),
    ("received-once", "erased", added("request.received", "erasure.started", ref=A, due=DUE)),
    ("extended-late", "erased", late(added("request.extended", "erasure.started", **EXTENDED, day="2027-03-01"))),
    ("due-far", "erased", changed("request.received", due="2027-03-05")),
    ("due-far", "erased", changed("request.received", due="9999-12-31")),
    ("due-far", "erased", added("request.extended", "erasure.started", ref=A, due="2027-05-06")),
    ("due-far", "erased twice", changed("request.reopened", due="2027-05-03")),
    ("days-back", "erased", changed("request.closed", day="2027-01-29")),
    ("days-back", "erased", changed("key.backup_expired", day="2027-01-29")),
    ("days-back", "erased twice", changed("erasure.started", 1, day="2027-03-29")),
    ("reopened-open", "erased", added("request.reopened", "erasure.started", ref=A, due=DUE)),
    ("after-closed", "erased", added("erasure.started", None, ref=A)),
    ("after-closed", "erased", added("request.identity_confirmed", None, ref=A)),
    ("after-closed", "erased", added("certificate.issued", None, ref=A, cert=digest("another"))),
    ("after-closed", "erased", moved("erasure.done", before="recipients.notified", number=1)),
    ("closed-once", "withdrawn", added("request.closed", None, ref=A, outcome="withdrawn", in_time=True)),
    ("started-first", "erased", moved("erasure.done", before="erasure.started", number=1)),
    ("started-first", "no data", moved("erasure.done", before="erasure.started")),
    ("started-first", "erased twice", lambda story: drop(story, place(story, "erasure.started", 1))),
    ("done-missing", "erased", without("erasure.done")),
    ("done-missing", "erased", lambda story: drop(story, place(story, "erasure.done"))),
    ("done-missing", "partial", without("erasure.done")),
    ("partial-unsaid", "erased", partly),
    ("partial-unsaid", "partial twice", without("request.refused")),
    ("extended-once", "erased", added_twice("request.extended", "erasure.started", **EXTENDED)),
    ("clock-once", "suspended", added("request.identity_confirmed", "erasure.started", ref=A, **SET_ANEW)),
    ("clock-once", "erased", added("request.identity_confirmed", "unlearn.done", ref=A, due=DUE)),
    ("clock-once", "erased", SET_AFTER_EXTENSION),
    ("due-far", "suspended", changed("request.identity_confirmed", due="2027-03-26")),
    ("due-far", "suspended", added("request.extended", "erasure.started", ref=A, due="2027-05-27", day="2027-02-21")),
    ("in-time", "suspended", changed("request.identity_confirmed", due=None)),
    ("ended-otherwise", "partial", changed("request.closed", outcome="completed")),
    ("ended-otherwise", "partial twice", changed("request.closed", 1, outcome="completed")),
    ("done-missing", "erased twice", lambda story: drop(story, place(story, "erasure.done", 2))),
    ("done-unverified", "erased", done(level="A1")),
    ("done-unverified", "erased", FROM_ELSEWHERE),
    ("done-unverified", "erased", moved("erasure.started", before="model.promoted")),
    ("done-unverified", "erased", added("verify.failed", "erasure.done", model=model("m0", "m1"))),
    ("done-uncomputed", "erased", without("unlearn.done")),
    ("done-uncomputed", "erased", changed("unlearn.done", method="influence-projection/1")),
    ("done-uncomputed", "erased", moved("unlearn.done", before="key.shredded")),
    ("done-uncomputed", "erased", done(method="retrain/1")),
    ("done-rolled-back", "erased", added("model.rolled_back", "erasure.done", model=model("m1", "m0"))),
    ("done-rolled-back", "shared", added("model.rolled_back", "request.received", model=model("m1", "m0"))),
    ("done-rolled-back", "no data", added("model.rolled_back", "erasure.done", model=model("m0", "m1"))),
    ("level-fits", "erased", done(level="none")),
    ("level-fits", "erased", changed("erasure.done", 1, level="A2")),
    ("level-fits", "shared", done(level="A0")),
    ("change-unknown", "erased", without("model.registered")),
    ("done-unpromoted", "erased", without("model.promoted")),
    ("done-unknown", "shared", done(model=model(after="m9"))),
    ("done-unknown", "shared", without("model.promoted")),
    ("no-data-only", "no data", done(method="already-forgotten/1")),
    ("no-data-unsaid", "no data", without("erasure.done")),
    ("no-data-unsaid", "no data", without("erasure.started", "erasure.done")),
    ("no-data-unsaid", "erased twice", CLOSED_AGAIN_WITHOUT_DATA),
    ("ended-otherwise", "erased", added("request.refused", "erasure.started", ref=A)),
    ("ended-otherwise", "refused", added("request.withdrawn", "request.refused", ref=A)),
    ("ended-otherwise", "no data", added("request.withdrawn", "request.closed", ref=A)),
    ("certified-though-ended", "withdrawn", added("certificate.issued", "request.closed", ref=A, cert=CERT)),
    ("certified-though-ended", "refused", changed("request.closed", cert=CERT)),
    ("erased-though-ended", "withdrawn", added("erasure.done", "key.shredded", ref=A, **NO_DATA)),
    ("ended-unsaid", "withdrawn", without("request.withdrawn")),
    ("shredded-missing", "withdrawn", without("key.shredded")),
    ("shredded-missing", "no data", all_of(without("key.shredded"), UNCERTIFIED)),
    ("shredded-once", "erased", added("key.shredded", "certificate.issued", ref=A)),
    ("shredded-once", "erased twice", late(added_second)),
    ("shredded-early", "erased", moved("key.shredded", before="erasure.started")),
    ("backup-early", "withdrawn", added("key.backup_expired", "key.shredded", ref=A)),
    ("certificate-missing", "erased", without("certificate.issued")),
    ("certificate-missing", "erased twice", lambda story: drop(story, place(story, "certificate.issued", 1))),
    ("certificate-missing", "no data", without("certificate.issued")),
    ("certificate-early", "erased", moved("certificate.issued", before="key.shredded")),
    ("certificate-early", "erased", moved("erasure.done", before="request.closed", number=1)),
    ("certificate-stray", "erased", added("certificate.issued", "certificate.issued", ref=A, cert=digest("another"))),
    ("certificate-stray", "no data", UNNAMED),
    ("in-time", "erased", late(changed("request.closed", day="2027-03-01"))),
    ("in-time", "erased", changed("request.closed", in_time=False)),
    ("in-time", "erased twice", changed("request.reopened", due="2027-04-29")),
    ("overdue", "erased", all_of(changed("request.received", due="2027-02-27"), UNCLOSED)),
    ("promoted-unverified", "erased", VERIFIED_FROM_ELSEWHERE),
    ("promoted-unverified", "shared", without("verify.passed")),
    ("promoted-unverified", "shared", added("verify.failed", "model.promoted", model=model("m0", "m1"))),
    ("nonce-once", "erased", lambda story: changed("key.shredded", nonce=story[0]["nonce"])(story)),
    ("cert-once", "erased twice", SAME_CERTIFICATE),
    ("commit-once", "erased", lambda story: changed("erasure.started", commit=story[1]["commit"])(story)),
]  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("today", [None, IN_TIME, TOO_LATE, date(2040, 1, 1)])
def test_a_good_story_breaks_no_rule(name, today):
    assert told(a_story(name), today).violations == ()


def test_all_good_stories_together_break_no_rule():
    read = told(good_log())
    assert read.violations == read.open == ()
    assert read.facts == (
        "47 leaves tell of 5 requests",
        "closed as completed: 3",
        "closed as no_data: 1",
        "closed as refused: 1",
        "closed as withdrawn: 1",
        "closed after the due day: 0",
        "erasures that rest on earlier ones (already-forgotten/1): 1",
        "rollbacks: 1; the log alone cannot tell which deletions they undid",
        "open, not yet due on 2027-02-28: 0",
    )


@pytest.mark.parametrize(("name", "change"), KEPT)
def test_what_the_rules_leave_open_breaks_none(name, change):
    assert change(a_story(name)) != a_story(name)
    assert broken(change(a_story(name))) == []


@pytest.mark.parametrize(("rule", "name", "change"), BROKEN)
def test_a_broken_rule_is_named_and_no_other(rule, name, change):
    assert change(a_story(name)) != a_story(name)
    assert set(broken(change(a_story(name)))) == {rule}


def test_every_rule_has_a_story_that_breaks_it():
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_a_violation_names_the_entry_that_breaks_the_rule():
    story = done(level="A1")(a_story("erased"))
    [violation] = told(story).violations
    assert (violation.index, violation.rule) == (place(story, "erasure.done"), "done-unverified")
    assert str(violation).startswith(f"entry {violation.index} [done-unverified]: ")


def test_an_early_leaf_is_found_where_it_stands_although_only_the_end_shows_it():
    story = moved("key.shredded", before="erasure.started")(a_story("erased"))
    assert [violation.index for violation in told(story).violations] == [place(story, "key.shredded")]


@pytest.mark.parametrize(("today", "rules"), [(None, []), (IN_TIME, []), (TOO_LATE, ["overdue"])])
def test_an_open_request_is_overdue_the_day_after_it_was_due(today, rules):
    story = UNCLOSED(a_story("erased"))
    assert broken(story, today) == rules
    assert [(open_.ref, open_.due) for open_ in told(story, today).open] == [(A, DUE)]


def test_an_extension_moves_the_day_by_which_a_request_is_overdue():
    tell = Teller()
    story = [*opening(tell), tell("request.received", ref=A, due=DUE), tell("request.extended", **EXTENDED)]
    assert broken(story, date(2027, 4, 30)) == []
    assert broken(story, date(2027, 5, 1)) == ["overdue"]
    assert told(story, date(2027, 5, 1)).violations[0].index == 3


def test_shredding_again_in_order_does_not_mend_shredding_too_early():
    early = added("key.shredded", "erasure.started", ref=A)
    assert broken(early(a_story("erased"))) == ["shredded-early", "shredded-once"]


def test_a_second_receipt_does_not_move_the_due_day():
    again = added("request.received", "erasure.started", ref=A, due="2027-04-30")
    closed_late = late(changed("request.closed", day="2027-03-01"))
    assert broken(all_of(again, closed_late)(a_story("erased"))) == ["in-time", "received-once"]


def test_a_late_closing_that_says_so_is_a_fact():
    story = changed("request.closed", day="2027-03-01", in_time=False)(a_story("erased"))
    assert "closed after the due day: 1" in told(story).facts


def test_levels_are_compared_by_strength_and_not_by_name():
    for verified in LEVELS[:-1]:
        for claimed in LEVELS[:-1]:
            story = all_of(changed("verify.passed", level=verified), done(level=claimed))(a_story("erased"))
            stronger_claim = LEVELS.index(claimed) < LEVELS.index(verified)
            assert broken(story) == (["done-unverified"] if stronger_claim else [])


def test_a_second_weaker_test_takes_nothing_from_the_first():
    story = added("verify.passed", "model.promoted", model=model("m0", "m1"), level="A1")(a_story("erased"))
    assert broken(story) == []


def test_a_stronger_test_before_the_request_does_not_lift_a_weaker_one_after_it():
    earlier = added("verify.passed", "request.received", model=model("m0", "m1"), level="A0")
    story = all_of(earlier, done(level="A0"))(a_story("erased"))
    assert broken(story) == ["done-unverified"]


def test_a_test_that_is_passed_after_a_failed_one_counts():
    again = [added("verify.passed", "model.promoted", model=model("m0", "m1"), level="A2"), moved_failure]
    assert broken(all_of(*again)(a_story("erased"))) == []


def moved_failure(story: Story) -> Story:
    """A failed test between the two passed ones."""
    at = place(story, "verify.passed", 1)
    return [*story[:at], Teller()("verify.failed", model=model("m0", "m1"), **FRESH), *story[at:]]


FRESH = {"nonce": "0" * 32, "commit": "0" * 64}


def of_two(tell: Teller) -> tuple[Story, Story]:
    """The leaves of a first request with its change, and those of a second one that came with no change."""
    return completed(tell, "a"), [leaf for leaf in completed(tell, "b") if "ref" in leaf]


def test_one_change_can_serve_many_requests():
    tell = Teller()
    first, second = of_two(tell)
    both_started = [*first[:3], *second[:3], *first[3:], *second[3:]]
    assert broken([*opening(tell), *both_started]) == []


def test_no_change_serves_a_request_that_came_after_its_test():
    tell = Teller()
    first, second = of_two(tell)
    assert broken([*opening(tell), *first, *second]) == ["done-unverified"]


@pytest.mark.parametrize("kind", ["unlearn.done", "verify.passed", "model.promoted"])
def test_a_change_to_the_same_weights_cannot_be_said(kind):
    with pytest.raises(BadLeaf):
        told(changed(kind, model=model("m1", "m1"))(a_story("erased")))


def test_weights_that_are_called_changed_and_are_the_same_were_never_computed():
    assert "done-uncomputed" in broken(done(model=model("m1", "m1"))(a_story("erased")))


def test_a_test_without_a_level_cannot_be_said():
    with pytest.raises(BadLeaf):
        told(changed("verify.passed", level="none")(a_story("erased")))


def test_a_rollback_that_undoes_nothing_in_the_log_is_a_fact():
    story = added("model.rolled_back", None, model=model("m1", "m0"))(a_story("erased"))
    assert broken(story) == []
    assert "rollbacks: 1; the log alone cannot tell which deletions they undid" in told(story).facts


def test_an_empty_log_breaks_no_rule():
    assert told([]).violations == ()


OBLIGATORY = (
    "log.opened", "unlearn.done",
    "request.received", "request.withdrawn", "request.refused", "erasure.started", "verify.passed", "model.promoted",
    "key.shredded", "certificate.issued", "request.closed", "request.reopened",
)  # fmt: skip


def obligatory(story: Story) -> list[int]:
    """What cannot be missing: also each of the only ones of its kind that say which model changed."""
    changes = [at for at, leaf in enumerate(story) if leaf["type"] == "erasure.done" and leaf["method"] != "no-data/1"]
    return changes + [at for at, leaf in enumerate(story) if leaf["type"] in OBLIGATORY]


@pytest.mark.parametrize("at", obligatory(good_log()))
def test_no_obligatory_leaf_can_be_dropped(at):
    story = good_log()
    assert broken(drop(story, at), date(2040, 1, 1)), story[at]["type"]


@given(st.data())
def test_a_drop_of_some_leaves_is_seen_unless_none_of_their_stories_is_left(data):
    story = good_log()
    places = data.draw(st.sets(st.sampled_from(obligatory(story)), min_size=1, max_size=4))
    left = drop(story, *places)
    gone = {story[at].get("ref") for at in places} - {None}
    whole = gone and all(not any(leaf.get("ref") == who for leaf in left) for who in gone)
    assert broken(left, date(2040, 1, 1)) or whole


@given(st.permutations(good_log()), st.sampled_from([None, IN_TIME, date(1, 1, 1), date(9999, 12, 31)]))
def test_leaves_in_any_order_are_read_to_the_end(story, today):
    read = told(story, today)
    assert read.facts[0] == f"{len(story)} leaves tell of 5 requests"
    assert all(0 <= violation.index < len(story) and violation.rule in RULES for violation in read.violations)


@given(st.lists(st.sampled_from(good_log()), max_size=60))
def test_leaves_repeated_and_left_out_at_random_are_read_to_the_end(story):
    read = told(story)
    assert len(read.violations) >= len(story) - len({leaf["nonce"] for leaf in story})


@given(st.data())
def test_two_neighbours_of_one_request_out_of_order_are_seen(data):
    """Those whose order means something; the rest of the story is as it was."""
    story = a_story("erased")
    pairs = [
        ("request.received", "request.identity_confirmed"),
        ("verify.passed", "model.promoted"),
        ("model.promoted", "erasure.done"),
        ("key.shredded", "certificate.issued"),
        ("certificate.issued", "request.closed"),
    ]
    first, second = data.draw(st.sampled_from(pairs))
    assert broken(moved(second, before=first)(story))
