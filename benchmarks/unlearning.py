"""Our two rungs beside their peers and true retrainings, bed by bed: `make bench-unlearning`.

Every set of members is also retrained without (3 seeds). Peers run at the counted cost that renewal has (5 % of a
retraining); of up to four settings each the best by the retrainings themselves is shown, which favours the peer. Ours
have one setting for all beds. The data folder or a package may be absent: such a bed is left out and named.

    python benchmarks/unlearning.py [--beds vowel digits] [--fresh] [--kept]

A finished bed is kept under .expunge/benchmarks with its commit and not run again for that; --fresh forgets them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks.beds import BEDS  # noqa: E402 - after the path
from benchmarks.beds.common import Bed, DataAbsent  # noqa: E402
from benchmarks.beds.ratings import Ratings  # noqa: E402
from benchmarks.peers import GRIDS, PEERS  # noqa: E402
from benchmarks.report import Figure, commit, write  # noqa: E402
from benchmarks.trial import Ready, Yardstick  # noqa: E402
from workers.unlearning.objective import Cost  # noqa: E402
from workers.unlearning.projection import project  # noqa: E402
from workers.unlearning.renewal import Renewal, renew  # noqa: E402
from workers.unlearning.report import UpdateReport  # noqa: E402

KEPT = ROOT / ".expunge" / "benchmarks" / "unlearning"
BUDGET = 0.05  # of a retraining
SETTINGS = {"handwriting-cnn": 2, "authors": 1}  # tried per peer; 4 where the bed is small
INTERPOLATING = ("vowel", "digits")
PROJECTION_TARGET = {"handwriting-mlp": 1.0, "handwriting-cnn": 1.0}
Json = dict[str, Any]  # Any: JSON


def main() -> None:
    """Run the beds, two at a time, and write the result."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--beds", nargs="*", default=sorted(BEDS))
    arguments.add_argument("--fresh", action="store_true")
    arguments.add_argument("--kept", action="store_true", help="report finished beds, whichever commit measured them")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    if given.one:
        KEPT.mkdir(parents=True, exist_ok=True)
        kept_at(given.one).write_text(json.dumps({"commit": commit(), **measure(given.one)}))
        return
    if given.kept:
        beds = {name: json.loads(kept_at(name).read_text()) for name in given.beds if kept_at(name).exists()}
        write("unlearning", [row for name, bed in beds.items() for row in figures(name, bed)], beds=beds)
        return
    with Progress() as bars, ThreadPoolExecutor(2) as pool:
        task = bars.add_task("beds", total=len(given.beds))
        done = [pool.submit(in_a_process, name, given.fresh, lambda: bars.advance(task)) for name in given.beds]
        beds = {name: each.result() for name, each in zip(given.beds, done, strict=True)}
    rows = [row for name, bed in beds.items() for row in figures(name, bed)]
    write("unlearning", rows, beds=beds)


def in_a_process(name: str, fresh: bool, finished: Callable[[], None]) -> Json:  # noqa: FBT001 - from the command line
    """Return the kept result of a bed, or measure it in a process of its own."""
    path = kept_at(name)
    if fresh or not path.exists() or json.loads(path.read_text())["commit"] != commit():
        command = [sys.executable, __file__, "--one", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    finished()
    return dict(json.loads(path.read_text()))


def kept_at(name: str) -> Path:
    """Name the file of a finished bed."""
    return KEPT / f"{name}.json"


def measure(name: str) -> Json:
    """Measure every method on every set of members of one bed."""
    try:
        bed = BEDS[name](split_seed=0)
    except DataAbsent as absent:
        return {"absent": str(absent)}
    say = Console(stderr=True).print
    ready = Ready(bed, step=lambda: say(f"{name}: one step of getting ready"))
    cases = []
    for kind, gone in sets(bed):
        say(f"{name}: {kind} {list(gone)}")
        cases.append(
            {"kind": kind, "gone": list(gone), "methods": methods(Yardstick(ready, gone, ready.retrained(gone)))}
        )
    facts = {"rows": len(bed.training_ids), "members": len(bed.members), "epochs": bed.epochs}
    return {**facts, "training_seconds": ready.training_seconds, "cases": cases}


def sets(bed: Bed) -> list[tuple[str, tuple[int, ...]]]:
    """Return five single members, the best known among them, and two groups."""
    known, plain = bed.memorised[:2], [m for m in bed.ordinary if m not in bed.memorised]
    singles = [("memorised", (m,)) for m in known] + [("ordinary", (m,)) for m in plain[: 5 - len(known)]]
    size = min(4, max(2, round(0.05 * len(bed.members))))
    groups = [("group", tuple(plain[5 + size * g : 5 + size * (g + 1)])) for g in range(2)]
    if bed.name == "authors":
        return singles[:3]  # one training takes as long as five of another bed
    return singles + [(kind, gone) for kind, gone in groups if len(gone) == size]


def methods(at: Yardstick) -> dict[str, Json]:
    """Measure the deployed model, a further retraining, ours and the peers."""
    bed, ready = at.ready.bed, at.ready
    told = {"deployed": at.measured(ready.deployed)}
    told["retraining"] = measured_without(at)
    sides = {"forget_ids": at.forgotten, "retain_ids": at.kept}
    fitted = {"references": ready.references, "law": bed.law}
    ours: dict[str, Callable[[], Any]] = {
        "projection": lambda: project(bed, ready.deployed, **sides, **fitted, factors=ready.factors),
        "renewal": lambda: renew(bed, ready.deployed, **sides, **fitted, seed=7),
        "renewal without shrinking": lambda: renew(
            bed, ready.deployed, **sides, **fitted, seed=7, settings=Renewal(shrink=0.0)
        ),
        "renewal without references": lambda: renew(
            bed, ready.deployed, **sides, **fitted, seed=7, settings=Renewal(pull=0.0)
        ),
    }
    for name, run in ours.items():
        started = time.perf_counter()
        update = run()
        seconds = time.perf_counter() - started
        verdict = at.judged(update.weights, update.report)
        told[name] = {
            **at.measured(update.weights),
            "cost": update.report.share_of_training(bed.epochs),
            "seconds": seconds / ready.training_seconds,
            "verdict": verdict.outcome,
            "sentence": verdict.sentence,
            **extra(at, update.weights),
        }
    if isinstance(bed, Ratings) and len(at.gone) == 1:
        told["row only"] = row_only(at, bed)
    for name, seconds_of in {"deployed": ready.deployed, "retraining": at.retrained[0]}.items():
        told[name] |= extra(at, seconds_of)
    return told | {name: peer(at, name) for name in PEERS if name != "scrub_rewind"}


def measured_without(at: Yardstick) -> Json:
    """Measure one retraining against the others: what ρ a fourth honest retraining would have."""
    others = Yardstick(at.ready, at.gone, at.retrained[1:])
    return others.measured(at.retrained[0])


def row_only(at: Yardstick, bed: Ratings) -> Json:
    """Erase the person's own rows and nothing else: what is often taken for unlearning a recommender."""
    weights = bed.row_only(at.ready.deployed, at.gone[0])
    report = UpdateReport(
        method="renewal",  # no solve whose numbers G1 could ask for
        complete=True,
        reason=None,
        forgotten_samples=len(at.forgotten),
        retained_samples=len(at.kept),
        moving_parameters=0,
    )
    verdict = at.judged(weights, report)
    return {**at.measured(weights), "verdict": verdict.outcome, "sentence": verdict.sentence}


def extra(at: Yardstick, weights: dict[str, torch.Tensor]) -> Json:
    """Return a canary's exposure in bits where the bed plants canaries."""
    bed = at.ready.bed
    exposure = getattr(bed, "exposure", None)
    return {} if exposure is None else {"exposure": statistics.fmean(exposure(weights, m) for m in at.gone)}


def peer(at: Yardstick, name: str) -> Json:
    """Return the best of a peer's settings at the budget, by the retrainings themselves."""
    bed, ready = at.ready.bed, at.ready
    budget = BUDGET * bed.epochs * len(at.kept)
    given: Json = {}
    if name == "distil":
        given["targets"] = ready.references.target(
            at.forgotten, repeats=ready.references.teachers, level="probabilities", law=bed.law
        ).float()
    if name.startswith("ekfac"):
        given["factors"] = ready.factors
    tried = []
    grid = GRIDS[name]
    for settings in dict.fromkeys([0, len(grid) - 1, 1, len(grid) // 2][: SETTINGS.get(bed.name, 4)]):
        cost = Cost()
        try:
            weights = PEERS[name](
                bed,
                ready.deployed,
                forget_ids=at.forgotten,
                retain_ids=at.kept,
                seed=7,
                cost=cost,
                budget=budget,
                **given,
                **grid[settings],
            )
            share = cost.forward_backwards / (bed.epochs * len(at.kept))
            tried.append({**at.measured(weights), "cost": share, "setting": dict(grid[settings])})
        except Exception as refusal:  # noqa: BLE001 - a peer that can't run here is shown as such
            tried.append({"refused": f"{type(refusal).__name__}: {refusal}"[:200]})
    ran = [one for one in tried if "rho" in one and one["rho"] == one["rho"]]
    return min(ran, key=lambda one: one["rho"]) if ran else tried[0]


def figures(name: str, bed: Json) -> list[Figure]:
    """Reduce a bed's cases to medians with their range."""
    if "absent" in bed:
        return [Figure(f"{name}: left out", bed["absent"])]
    rows = []
    rows += [
        Figure(f"{name}: exposure in bits, deployed / projection / renewal / retraining", exposures(bed))
        for _ in range("exposure" in bed["cases"][0]["methods"]["deployed"])
    ]
    rows += row_only_rows(name, bed)
    for kind in ("ordinary", "memorised", "group"):
        cases = [case["methods"] for case in bed["cases"] if case["kind"] == kind]
        for method in cases[0] if cases else ():
            rows += method_rows(f"{name}, {kind}, {method}", method, [case[method] for case in cases], name)
    return rows + ladder_rows(name, bed)


def exposures(bed: Json) -> str:
    """Return the median exposure of a canary, with its range."""
    told = []
    for method in ("deployed", "projection", "renewal", "retraining"):
        bits = [case["methods"][method]["exposure"] for case in bed["cases"]]
        told.append(f"{statistics.median(bits):.1f} [{min(bits):.1f}-{max(bits):.1f}]")
    return " / ".join(told)


def row_only_rows(name: str, bed: Json) -> list[Figure]:
    """Tell whether the gates stop what erases a person's own rows and nothing else."""
    told = [case["methods"]["row only"] for case in bed["cases"] if "row only" in case["methods"]]
    if not told:
        return []
    stopped = sum(one["verdict"] != "passed" for one in told)
    rho = statistics.median(one["rho"] for one in told)
    label = f"{name}: row-only erasures that the gates stop (median ρ {rho:.2f})"
    return [Figure(label, f"{stopped} of {len(told)}", "all", stopped == len(told))]


def method_rows(label: str, method: str, told: list[Json], name: str) -> list[Figure]:
    """Return ρ, ρ after an epoch, cost and utility of one method."""
    ran = [one for one in told if "rho" in one]
    if not ran:
        return [Figure(label, told[0]["refused"])]
    ours = method == ("renewal" if name in INTERPOLATING else "projection")
    most = PROJECTION_TARGET.get(name, 1.2)
    rho = statistics.median(one["rho"] for one in ran)
    after = statistics.median(one["after"] for one in ran)
    cost = statistics.median(one.get("cost", 0.0) for one in ran)
    points = 100 * statistics.median(one["held_out"] for one in ran)
    spread = f"[{min(one['rho'] for one in ran):.2f}-{max(one['rho'] for one in ran):.2f}]"
    value = f"ρ {rho:.2f} {spread}, after an epoch {after:.2f}, cost {cost:.1%}, held-out {points:+.1f}"
    if not ours:
        return [Figure(f"{label} (n={len(ran)})", value)]
    return [
        Figure(f"{label} (n={len(ran)})", value, f"ρ ≤ {most}", rho <= most),
        Figure(f"{label}: ρ after an ordinary epoch", round(after, 2), "≤ 1.5", after <= 1.5),
    ]


def ladder_rows(name: str, bed: Json) -> list[Figure]:
    """Tell where the ladder ends: the first of our rungs that its gates let pass, else a retraining."""
    ends = {"projection": 0, "renewal": 0, "retraining": 0}
    rhos, afters = [], []
    for case in bed["cases"]:
        told = case["methods"]
        end = next((rung for rung in ("projection", "renewal") if told[rung]["verdict"] == "passed"), "retraining")
        ends[end] += 1
        rhos.append(told[end]["rho"])
        afters.append(told[end]["after"])
    value = ", ".join(f"{rung} {count}" for rung, count in ends.items())
    return [
        Figure(f"{name}: the ladder ends at", value),
        Figure(f"{name}: where it ends, worst ρ / after an epoch", f"{max(rhos):.2f} / {max(afters):.2f}"),
        Figure(
            f"{name}: seconds of projection / renewal over a retraining's",
            " / ".join(
                f"{statistics.median(c['methods'][rung]['seconds'] for c in bed['cases']):.3f}"
                for rung in ("projection", "renewal")
            ),
        ),
    ]


if __name__ == "__main__":
    main()
