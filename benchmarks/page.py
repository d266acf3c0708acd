"""Turn benchmarks/results into the tables and plots of docs/benchmarks.md: `make bench-page`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md"
START, END = "<!-- tables: written by make bench-page -->", "<!-- end of tables -->"
OURS = ("projection", "renewal")
ORDER = (
    "deployed", "retraining", "projection", "renewal", "renewal without shrinking", "renewal without references",
    "distil", "fine_tune", "neg_grad_plus", "ssd", "scrub", "salun", "ekfac_influence", "ekfac_step",
)  # fmt: skip
Json = dict[str, Any]  # Any: JSON


def main() -> None:
    """Rewrite what stands between the markers, and the plots."""
    beds = json.loads((RESULTS / "unlearning.json").read_text())["beds"]
    streams = json.loads((RESULTS / "stream.json").read_text())["streams"]
    text = PAGE.read_text()
    before, after = text[: text.index(START)], text[text.index(END) :]
    tables = [table(name, bed) for name, bed in sorted(beds.items()) if "absent" not in bed]
    PAGE.write_text(before + START + "\n\n" + "\n\n".join([*tables, streamed(streams)]) + "\n\n" + after)
    plot(beds)


def table(name: str, bed: Json) -> str:
    """Return a bed's table: a line per method, a column per kind of set, then cost, held-out accuracy and verdicts."""
    kinds = [kind for kind in ("ordinary", "memorised", "group") if any(c["kind"] == kind for c in bed["cases"])]
    head = "".join(f" {kind} (n={len(of(bed, kind))}) |" for kind in kinds)
    facts = f"{bed['rows']} rows, {bed['members']} members, {bed['epochs']} epochs"
    columns = f"| method |{head} cost | held-out | gates |"
    lines = [f"### {name} ({facts})", "", columns, "|---|" + "---|" * (len(kinds) + 3)]
    lines += [line(bed, method, kinds) for method in ORDER]
    return "\n".join(lines)


def line(bed: Json, method: str, kinds: list[str]) -> str:
    """Return ρ [range] → ρ after an epoch for every kind, then cost and held-out accuracy by kind, and verdicts."""
    told = {kind: [case["methods"][method] for case in of(bed, kind)] for kind in kinds}
    every = [one for ones in told.values() for one in ones]
    name = f"**{method}**" if method in OURS else method.replace("_", " ")
    if not any("rho" in one for one in every):
        return f"| {name} | {every[0]['refused'][:60]} |" + " |" * (len(kinds) + 2)
    cells = "".join(f" {cell(ones)} |" for ones in told.values())
    cost = "" if method in ("deployed", "retraining") else medians(told, "cost", "{:.1%}")
    return f"| {name} |{cells} {cost} | {medians(told, 'held_out', '{:+.1f}', times=100)} | {verdicts(every)} |"


def medians(told: dict[str, list[Json]], key: str, form: str, times: float = 1.0) -> str:
    """Return the median of each kind, in the order of the columns."""
    found = [[times * one[key] for one in ones if key in one] for ones in told.values()]
    return " / ".join(form.format(statistics.median(values)) if values else "-" for values in found)


def verdicts(told: list[Json]) -> str:
    """Count passed / inconclusive / failed, where the gates were asked."""
    given = [one["verdict"] for one in told if "verdict" in one]
    return " / ".join(str(given.count(outcome)) for outcome in ("passed", "inconclusive", "failed")) if given else ""


def cell(told: list[Json]) -> str:
    """Return one cell."""
    rhos = [one["rho"] for one in told if "rho" in one]
    if not rhos:
        return "refused"
    after = statistics.median(one["after"] for one in told if "rho" in one)
    return f"{statistics.median(rhos):.2f} [{min(rhos):.2f}-{max(rhos):.2f}] → {after:.2f}"


def of(bed: Json, kind: str) -> list[Json]:
    """Return the cases of a kind."""
    return [case for case in bed["cases"] if case["kind"] == kind]


def streamed(streams: Json) -> str:
    """Return the table of the streams."""
    lines = [
        "### Streams",
        "",
        "| bed | gone | ρ | ρ after an epoch (a retraining's) | held-out | retained (retrainings) |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, points in streams.items():
        for p in points:
            if "absent" in p:
                continue
            least, most = p["retained_range"]
            lines.append(
                f"| {name} | {p['gone']} | {p['rho']:.2f} | {p['after']:.2f} ({p['retraining_after']:.2f}) | "
                f"{100 * p['held_out']:+.1f} | {p['retained']:.3f} ({least:.3f}-{most:.3f}) |"
            )
    return "\n".join(lines)


def plot(beds: Json) -> None:
    """Draw ρ right after the update against ρ after an ordinary epoch, a panel per bed, single people."""
    shown = [(name, bed) for name, bed in sorted(beds.items()) if "absent" not in bed]
    figure, panels = plt.subplots(2, -(-len(shown) // 2), figsize=(13, 7), squeeze=False)
    for panel, (name, bed) in zip(panels.flat, shown, strict=False):
        for method in ORDER:
            told = [
                c["methods"][method] for c in bed["cases"] if c["kind"] != "group" and "rho" in c["methods"][method]
            ]
            if told:
                point = [statistics.median(one[key] for one in told) for key in ("rho", "after")]
                bold = method in OURS
                panel.scatter(*point, s=60 if bold else 25, marker="D" if bold else "o", label=method)
                panel.annotate(method.replace("_", " "), point, fontsize=6.5, weight="bold" if bold else "normal")
        panel.axvline(1.0, lw=0.6, color="grey")
        panel.axhline(1.0, lw=0.6, color="grey")
        panel.set(xscale="log", yscale="log", title=name, xlabel="ρ after the update", ylabel="ρ after one more epoch")
    for panel in list(panels.flat)[len(shown) :]:
        panel.axis("off")
    figure.tight_layout()
    (PAGE.parent / "plots").mkdir(exist_ok=True)
    figure.savefig(PAGE.parent / "plots" / "unlearning.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
