"""G1: finite weights; a computed update was solved to tolerance, or cut short within its trust region.

An influence projection is truncated on purpose: the truncation is its trust region, and solving on was measured to be
worse. Its residual says nothing then; that its steps did what they were built to do, and stayed near, does.
"""

from ..model import Weights
from ..report import Json, UpdateReport
from .gate import Gate, Thresholds, failed, passed

NAME = "G1 numerics"


def numerics(after: Weights, update: UpdateReport, thresholds: Thresholds, *, exact: bool) -> Gate:
    """Judge the weights by their numbers and the update by its own report."""
    bad = [name for name, tensor in after.items() if not bool(tensor.isfinite().all())]
    numbers: Json = {"not_finite": bad, **_reported(update)}
    if bad:
        return failed(NAME, f"{len(bad)} tensors hold NaN or infinity.", numbers)
    if exact:
        return passed(NAME, "All weights are finite.", numbers)
    if not update.complete:
        return failed(NAME, f"The update is incomplete: {update.reason}.", numbers)
    if update.method == "renewal":
        return passed(NAME, "All weights are finite after every batch of the renewal was run.", numbers)
    return _truncated(numbers, thresholds) if numbers["truncated"] else _solved(numbers, thresholds)


def _reported(update: UpdateReport) -> Json:
    steps = [update.function_step, *(trial.function_step for trial in update.taken)]
    return {
        "method": update.method,
        "complete": update.complete,
        "truncated": update.truncated,
        "worst_residual": update.worst_residual,
        "worst_ratio": min((trial.ratio for trial in update.taken), default=None),
        "largest_function_step": max((q for q in steps if q is not None), default=None),
    }


def _solved(n: Json, t: Thresholds) -> Gate:
    residual = n["worst_residual"]
    if residual is None or not residual <= t.worst_residual:
        return failed(NAME, f"Relative residual {residual}, at most {t.worst_residual}.", n)
    return passed(NAME, f"Solved to relative residual {residual:.2g} by accepted steps.", n)


def _truncated(n: Json, t: Thresholds) -> Gate:
    """Ask what the step control asked; a report that shows no step at all shows nothing."""
    ratio, q = n["worst_ratio"], n["largest_function_step"]
    if q is None:
        return failed(NAME, "The update was cut short on purpose and its report shows no step.", n)
    if not q <= t.largest_function_step:
        return failed(NAME, f"A step moved the outputs by q = {q:.3g}, at most {t.largest_function_step}.", n)
    if ratio is not None and not ratio >= t.least_ratio:
        return failed(NAME, f"A step kept {ratio:.3g} of what it predicted, at least {t.least_ratio}.", n)
    kept = "" if ratio is None else f", {ratio:.2g} of what was predicted came true"
    return passed(NAME, f"Cut short on purpose within its trust region (q = {q:.2g}){kept}.", n)
