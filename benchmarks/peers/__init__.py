"""Other people's ways to forget, on our recipes, at a counted cost.

    weights = PEERS[name](bed, weights, forget_ids=S, retain_ids=R, seed=0, cost=Cost(), budget=None, **settings)

Each is written from its paper and its authors' code (named in its docstring, with the commit) and starts from their
hyper-parameters. `GRIDS` holds a few further settings per peer, the published one first. A benchmark that picks the
best of them *with the retraining as oracle* favours the peer: nobody has that oracle when it matters. Say so.
"""

from .first_order import distil, fine_tune, neg_grad_plus
from .grids import GRIDS, PEERS
from .influence_ekfac import ekfac_influence, ekfac_step
from .likeness import NotCarriedOver
from .salun import salun
from .scrub import scrub, scrub_rewind
from .ssd import ssd
from .student import BudgetSpent

__all__ = [
    "GRIDS",
    "PEERS",
    "BudgetSpent",
    "NotCarriedOver",
    "distil",
    "ekfac_influence",
    "ekfac_step",
    "fine_tune",
    "neg_grad_plus",
    "salun",
    "scrub",
    "scrub_rewind",
    "ssd",
]
