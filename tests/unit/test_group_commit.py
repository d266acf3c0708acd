"""The group commit alone: who waits is answered, whatever happens to the group or to its neighbours."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from app.api.group_commit import GroupCommit
from app.errors import Invalid, Unavailable


class Disk:
    """Takes groups, and lets go of one when it is told to."""

    def __init__(self, *, spoiled: frozenset[int] = frozenset(), away: bool = False) -> None:
        self.groups: list[list[int]] = []
        self.spoiled, self.away = spoiled, away
        self.open = threading.Event()
        self.open.set()

    def flush(self, group: Sequence[int]) -> list[int | Exception]:
        self.open.wait(10)
        self.groups.append(list(group))
        if self.away:
            raise Unavailable("no disk")
        if self.spoiled.intersection(group):
            raise ValueError("spoiled")
        return [Invalid("n", "negative") if n < 0 else n * 10 for n in group]


def run(disk: Disk, story: Callable[[GroupCommit[int, int]], object], **options: int) -> object:
    async def tell() -> object:
        commit: GroupCommit[int, int] = GroupCommit(disk.flush, **options)
        try:
            return await story(commit)  # type: ignore[misc] # the stories below are coroutines
        finally:
            disk.open.set()
            await commit.drain()

    return asyncio.run(tell())


def test_each_gets_its_own_answer_and_those_who_wait_go_together() -> None:
    disk = Disk()

    async def story(commit: GroupCommit[int, int]) -> list[int]:
        return await asyncio.gather(*(commit.submit(n) for n in range(1000)))

    assert run(disk, story) == [n * 10 for n in range(1000)]
    assert len(disk.groups) < 10
    assert max(map(len, disk.groups)) <= 256
    assert sorted(n for group in disk.groups for n in group) == list(range(1000))


def test_nobody_waits_for_a_group_to_fill() -> None:
    disk = Disk()

    async def story(commit: GroupCommit[int, int]) -> int:
        return await asyncio.wait_for(commit.submit(7), 2)

    assert run(disk, story) == 70


def test_an_error_of_one_is_not_the_others() -> None:
    async def story(commit: GroupCommit[int, int]) -> list[object]:
        return await asyncio.gather(*(commit.submit(n) for n in (1, -1, 2)), return_exceptions=True)

    good, bad, fine = run(Disk(), story)  # type: ignore[misc] # a list of three
    assert (good, fine) == (10, 20)
    assert isinstance(bad, Invalid)


def test_one_that_spoils_its_group_fails_alone() -> None:
    disk = Disk(spoiled=frozenset({13}))

    async def story(commit: GroupCommit[int, int]) -> list[object]:
        return await asyncio.gather(*(commit.submit(n) for n in range(20)), return_exceptions=True)

    answers = run(disk, story)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, Exception)] == [13]  # type: ignore[arg-type]


def test_when_postgresql_is_away_everybody_hears_so_without_a_try_for_each() -> None:
    disk = Disk(away=True)

    async def story(commit: GroupCommit[int, int]) -> list[object]:
        return await asyncio.gather(*(commit.submit(n) for n in range(200)), return_exceptions=True)

    answers = run(disk, story)
    assert {type(answer) for answer in answers} == {Unavailable}  # type: ignore[attr-defined]
    assert len(disk.groups) < 20


def test_beyond_the_cap_callers_are_sent_away_and_those_before_are_served() -> None:
    disk = Disk()
    disk.open.clear()

    async def story(commit: GroupCommit[int, int]) -> list[int]:
        taken = [commit.submit(n) for n in range(2)]  # two flushers take one each, or one takes both
        await asyncio.sleep(0.1)
        taken += [commit.submit(n) for n in range(2, 7)]
        with pytest.raises(Unavailable, match="not accepted"):
            commit.submit(7)
        disk.open.set()
        return await asyncio.gather(*taken)

    assert run(disk, story, most_waiting=5) == [0, 10, 20, 30, 40, 50, 60]


def test_what_was_handed_in_is_written_even_if_its_caller_leaves() -> None:
    disk = Disk()
    disk.open.clear()

    async def story(commit: GroupCommit[int, int]) -> int:
        gone, stays = commit.submit(1), commit.submit(2)
        gone.cancel()
        disk.open.set()
        return await stays

    assert run(disk, story) == 20
    assert sorted(n for group in disk.groups for n in group) == [1, 2]


def test_draining_answers_all_who_still_wait() -> None:
    disk = Disk()
    disk.open.clear()

    async def story(commit: GroupCommit[int, int]) -> list[bool]:
        waiting = [commit.submit(n) for n in range(600)]
        disk.open.set()
        await commit.drain()
        return [answer.done() for answer in waiting]

    assert run(disk, story) == [True] * 600
