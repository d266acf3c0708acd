"""Which settings a benchmark may try for each peer: the published one first, then a few around it.

The published ones were found on ResNets with SGD; the others bring the method to a small net that Adam trained.
`distil` also needs `targets`, `scrub_rewind` needs `validation_ids`. A damping of 0 is refused (NotInvertible) by a bed
without weight decay: that setting then has no result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .first_order import distil, fine_tune, neg_grad_plus
from .influence_ekfac import ekfac_influence, ekfac_step
from .salun import salun
from .scrub import scrub, scrub_rewind
from .ssd import ssd

Settings = Mapping[str, object]
Peer = Callable[..., dict[str, Tensor]]

PEERS: dict[str, Peer] = {
    peer.__name__: peer
    for peer in (
        fine_tune,
        distil,
        neg_grad_plus,
        ssd,
        scrub,
        scrub_rewind,
        salun,
        ekfac_influence,
        ekfac_step,
    )
}

_ADAM: list[dict[str, object]] = [{"optimiser": "adam", "lr": lr, "batch_size": 32} for lr in (1e-4, 1e-3)]
_PACES: list[dict[str, object]] = [{"batch_size": 32}, *_ADAM]
_DISOBEY: list[dict[str, object]] = [
    {"max_epochs": most, "epochs": most + 1, "forget_batch_size": 16} for most in (2, 4, 8)
]
_SCRUB: tuple[Settings, ...] = (
    {},
    *({**pace, **play} for pace in _PACES for play in _DISOBEY),
)

GRIDS: dict[str, tuple[Settings, ...]] = {
    "fine_tune": (
        {},
        {"lr": 0.1},
        *({**pace, "epochs": epochs} for pace in _ADAM for epochs in (1, 3, 10, 30)),
    ),
    "distil": tuple(
        {"retained": held, "lr": lr, "epochs": epochs}
        for held in ("labels", "self")
        for lr in (1e-3, 3e-4, 3e-3)
        for epochs in (1, 3)
    ),
    "neg_grad_plus": (
        {},
        {"alpha": 0.9999, "epochs": 5},
        *({**pace, "alpha": alpha, "epochs": 3} for pace in _ADAM for alpha in (0.8, 0.9, 0.95, 0.99)),
    ),
    "ssd": tuple(
        {"alpha": alpha, "dampening": dampening, "fisher_batch_size": size}
        for size in (128, 1)
        for alpha, dampening in ((10.0, 1.0), (5.0, 1.0), (2.0, 1.0), (2.0, 0.1))
    ),
    "scrub": _SCRUB,
    "scrub_rewind": _SCRUB,
    "salun": (
        {},
        {"lr": 0.1},
        {"lr": 0.001},
        *({**pace, "epochs": epochs} for pace in _ADAM for epochs in (1, 3, 10)),
    ),
    "ekfac_influence": tuple({"damping": damping} for damping in (1e-2, 1e-1, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 0.0)),
    "ekfac_step": tuple({"damping": damping} for damping in (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
}
