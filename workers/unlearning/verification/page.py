"""A verdict as one page that a data protection officer can read: words first, then tables and two drawings.

The page is a function of the two JSON values that the job keeps. It loads nothing, runs nothing and names nobody.
Names of groups are the owner's: they are drawn as text, never as mathematics, and without control characters, which
XML does not know and which could turn a sentence around. A statistic that is null is left out.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape as escaped
from io import StringIO
from typing import TYPE_CHECKING

from ..report import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OUTCOMES = {
    "passed": "Passed: the candidate may be published.",
    "failed": "Failed: the candidate must not be published.",
    "inconclusive": "Inconclusive: the tests could not see enough; the request needs the next stronger method.",
}
_LEVELS = {
    "A0": "A0, exact: the model was trained again without the people.",
    "A1": "A1, certified within a stated bound.",
    "A2": "A2, verified: statistical evidence with the error rates below.",
    "A3": "A3, inconclusive: no evidence either way.",
}
_SCALES = {
    "calibrated": (
        "how sure the model is of a person's samples, compared with models that never saw the person",
        "standardised confidence",
    ),
    "raw": ("how small the model's loss on a person's samples is", "minus the mean loss"),
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .4rem; }
th, td { border-bottom: 1px solid #ccc; } figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
.verdict { border-left: .5rem solid #777; padding: .5rem 1rem; background: #f5f5f5; }
.passed { border-color: #1b7f4d; } .failed { border-color: #b3261e; } .inconclusive { border-color: #b7791f; }
"""
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_TAG = re.compile(r"<[a-zA-Z][^>]*>")
_BLUE, _GREY, _RED = "#2f6db3", "#8a8a8a", "#b3261e"


def page(verdict: Json, update: Json, title: str) -> str:
    """Return a self-contained HTML file.

    Args:
        verdict: what `Verdict.as_dict` returned.
        update: what `UpdateReport.as_dict` returned.
        title: heads the page.
    """
    gates = {gate["name"].split()[0]: gate for gate in verdict["gates"]}
    parts = [
        _head(title),
        _decision(verdict),
        _work(update),
        _tests(verdict),
        _error_rates(gates.get("G2", {}), gates.get("G3", {})),
        _gates(verdict["gates"]),
        *_drawings(gates.get("G2", {}), gates.get("G3", {})),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def escape(text: str) -> str:
    """Make any text one that HTML and XML show as it is."""
    return escaped(_writable(text))


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)


def _head(title: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>"
    )


def _decision(verdict: Json) -> str:
    level = _LEVELS.get(verdict["level"] or "", "No level of assurance.")
    outcome, sentence = verdict["outcome"], escape(verdict["sentence"])
    told = f"<p><strong>{_OUTCOMES[outcome]}</strong> {level}</p><p>{sentence}</p>"
    return f'<div class="verdict {escape(outcome)}">{told}</div>'


def _work(update: Json) -> str:
    told = {
        "Method": update.get("method"),
        "Carried out in full": "yes" if update.get("complete") else f"no: {update.get('reason')}",
        "Samples forgotten": update.get("forgotten_samples") or "not read: trained again without them",
        "Samples retained": update.get("retained_samples"),
        "Parameters that may move": update.get("moving_parameters"),
        "Length of the step": _number(update.get("step_norm")),
    }
    rows = [(name, str(value)) for name, value in told.items() if value is not None]
    return "<h2>What was done</h2>" + _table(("", ""), rows)


def _tests(verdict: Json) -> str:
    run, not_run = (_list(verdict[key]) for key in ("run", "not_run"))
    return f"<h2>What was tested</h2>{run}<h2>What was not tested</h2><p>About these nothing is said.</p>{not_run}"


def _error_rates(utility: Json, forgetting: Json) -> str:
    sentences = _of_usefulness(utility) + _of_forgetting(forgetting)
    return f"<h2>How far the tests can be trusted</h2>{_list(sentences)}" if sentences else ""


def _of_usefulness(n: Json) -> list[str]:
    if "alpha" not in n:
        return []
    left = len(n.get("segments_not_judged", ()))
    small = f" {left} classes or groups had too few samples to be judged." if left else ""
    return [f"Usefulness: a model that is worse by the margin would be accepted in {n['alpha']:.0%} of cases.{small}"]


def _of_forgetting(n: Json) -> list[str]:
    if any(n.get(key) is None for key in ("power_on_members", "power_interval_95", "alpha_each_tail")):
        return []
    low, high = n["power_interval_95"]
    level, job = n["alpha_each_tail"], n.get("alpha_job_each_tail", 0.05)
    subject = (
        f"The test looks at {_SCALES[n.get('statistic', 'raw')][0]}, and compares {n['users']} forgotten people with "
        f"{n['strangers']} people whom no model ever saw."
    )
    alarms = (
        f"False alarms: somebody who is fully forgotten would be flagged in {level:.1%} of cases as remembered and in "
        f"{level:.1%} as suspiciously forgotten; the whole job would fail in at most {job:.0%} of cases either way."
    )
    misses = (
        f"Missed memories: before the deletion the test recognised {n['power_on_members']:.0%} of {n['members']} "
        f"people who were in the model (95 % interval {low:.0%} to {high:.0%}); others like them would go unnoticed."
    )
    limit = "One person's test can catch a gross failure. It cannot show that nothing is left."
    return [subject, alarms, misses, limit]


def _gates(gates: Sequence[Json]) -> str:
    rows = [(gate["name"], gate["outcome"], gate["sentence"]) for gate in gates]
    return "<h2>Gates</h2>" + _table(("Gate", "Outcome", "Finding"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>" if any(head) else _plain(body)


def _plain(body: str) -> str:
    return f"<table><tbody>{body}</tbody></table>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else "<p>Nothing.</p>"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


# --- drawings ----------------------------------------------------------------------------------------------------


def _drawings(utility: Json, forgetting: Json) -> list[str]:
    made = []
    if "statistics_before" in forgetting:
        caption = "Where the forgotten people stand among strangers and members. Far right: remembered."
        made.append(_figure("people", partial(_people, forgetting), caption))
    segments = [segment for segment in utility.get("segments", ()) if segment["pairs"] and _drawable(segment)]
    if segments:
        caption = "What each class or group lost, with its 95 % interval; dashed the tolerated loss, grey: not decided."
        made.append(_figure("segments", partial(_segments, segments[:40]), caption))
    return ["<h2>Drawings</h2>", *made] if made else []


def _drawable(segment: Json) -> bool:
    return segment["worsening"] is not None and segment["margin"] is not None


def _people(n: Json) -> "Figure":
    """Draw one row per model: strangers and members as dots spread in height, forgotten people as lines."""
    rows = {"before": n["statistics_before"], "after": n["statistics_after"]}
    if "resurrection" in n:
        rows["after one more epoch"] = n["resurrection"]["statistics"]
    figure = _blank(height=1.7 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, row) in zip(grid, rows.items(), strict=True):
        _standings(axes, name, row)
    grid[0].legend(loc="upper left", bbox_to_anchor=(0, 1.35), ncols=3, frameon=False, fontsize=8)
    grid[-1].set_xlabel(_SCALES[n.get("statistic", "raw")][1])
    return figure


def _standings(axes: "Axes", name: str, row: Json) -> None:
    for height, side, colour in ((1, "members", _BLUE), (0, "strangers", _GREY)):
        values = _known(row[side])
        heights = [height + 0.3 * ((k * 0.618) % 1 - 0.5) for k in range(len(values))]  # spread, the same every time
        axes.plot(values, heights, ".", color=colour, markersize=3, alpha=0.6, label=side)
    for k, value in enumerate(_known(row["users"])):
        axes.axvline(value, color=_RED, linewidth=1, label="forgotten" if k == 0 else "_")
    axes.set_yticks([0, 1], ["strangers", "members"], fontsize=8)
    axes.set_ylim(-0.5, 1.5)
    axes.set_title(name, fontsize=9, loc="right")


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _segments(segments: Sequence[Json]) -> "Figure":
    figure = _blank(height=0.28 * len(segments) + 0.9)
    axes = figure.subplots()
    for row, segment in enumerate(segments):
        colour = {"passed": _BLUE, "failed": _RED}.get(segment["outcome"], _GREY)
        reach = 1.96 * (segment["error"] or 0.0)
        axes.errorbar(segment["worsening"], row, xerr=reach, fmt="o", color=colour, markersize=4, capsize=2)
        axes.plot([segment["margin"]] * 2, [row - 0.4, row + 0.4], "--", color=_GREY, linewidth=1)
    axes.set_yticks(range(len(segments)), [_short(segment["name"]) for segment in segments], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("fall of accuracy" if segments[0]["accuracy"] else "rise of the mean loss")
    return figure


def _short(name: str) -> str:
    name = " ".join(_writable(name).split())
    return name if len(name) <= 40 else f"{name[:39]}…"


def _blank(*, height: float) -> "Figure":
    from matplotlib.figure import Figure  # noqa: PLC0415 - only whoever asks for a page needs it

    return Figure(figsize=(7.5, height), layout="constrained")


def _figure(name: str, drawn: Callable[[], "Figure"], caption: str) -> str:
    """Write the drawing into the page, its ids made the figure's own: a page may hold each id once.

    Drawn inside the context too: a text decides when it is made whether dollar signs mean mathematics.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - as above

    out = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        drawn().savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Type", "Format")))
    own = partial(re.sub, r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-")
    svg = _TAG.sub(lambda tag: own(tag.group()), out.getvalue()[out.getvalue().index("<svg") :])
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return f"<figure>{named}<figcaption>{escape(caption)}</figcaption></figure>"
