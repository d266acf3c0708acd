"""The Dockerfile as stages of instructions, and .dockerignore as a filter."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One ``FROM … AS name`` and what follows it."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """The arguments of every instruction of this kind in this stage."""
        return [rest for found, rest in self.steps if found == word]


def stages() -> dict[str, Stage]:
    """All stages by name, in order."""
    found: dict[str, Stage] = {}
    for word, rest in _instructions((ROOT / "Dockerfile").read_text()):
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            found[name] = Stage(name, parent)
        else:
            [*found.values()][-1].steps.append((word, rest))
    return found


def line(name: str) -> list[Stage]:
    """A stage and those it is built on, the oldest first."""
    known = stages()
    stage = known[name]
    return [*(line(stage.parent) if stage.parent in known else []), stage]


def last(name: str, word: str) -> str:
    """The argument that is in force at the end of a stage."""
    return [rest for stage in line(name) for rest in stage.all(word)][-1]


def words(name: str, word: str) -> list[str]:
    """``ENTRYPOINT`` or ``CMD`` of a stage, in its JSON form."""
    found: list[str] = json.loads(last(name, word))
    return found


def healthcheck(name: str) -> list[str]:
    """The command of a stage's HEALTHCHECK."""
    found: list[str] = json.loads(last(name, "HEALTHCHECK").partition("CMD ")[2])
    return found


def environment(name: str) -> dict[str, str]:
    """What ENV leaves in the environment of a stage's processes."""
    pairs = [pair for stage in line(name) for rest in stage.all("ENV") for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def installs(name: str) -> list[str]:
    """Every ``pip install`` on the way to a stage, in order."""
    runs = [rest for stage in line(name) for rest in stage.all("RUN")]
    return [command.strip() for run in runs for command in run.split("&&") if "pip install" in command]


def copied(name: str) -> list[str]:
    """Every source that COPY takes out of the repository on the way to a stage."""
    return [source for stage in line(name) for rest in stage.all("COPY") for source in rest.split()[:-1]]


def reaches_the_builder(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last line that fits it, or a parent of it, decides."""
    parts = path.split("/")
    names = {"/".join(parts[: end + 1]) for end in range(len(parts))}
    through = True
    for rule in (ROOT / ".dockerignore").read_text().split("\n"):
        pattern = rule.lstrip("!").removeprefix("**/")
        if rule and not rule.startswith("#") and any(_fits(name, pattern, deep="**/" in rule) for name in names):
            through = rule.startswith("!")
    return through


def _fits(name: str, pattern: str, *, deep: bool) -> bool:
    return fnmatch(name.rpartition("/")[2] if deep else name, pattern)


def _instructions(text: str) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]
