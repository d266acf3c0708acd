"""The contract between dispatch and workers: names of queues and tasks; a message carries one id and nothing else."""

from __future__ import annotations

from typing import Final

UNLEARN: Final = "unlearn"
"""Queue of the pipeline: one torch step at a time per worker."""
IO: Final = "io"
"""Queue of webhooks."""
QUEUES: Final = (UNLEARN, IO)

ERASE: Final = "expunge.erase"
"""``erase(job_id)``: run the pipeline of one job."""
NOTIFY: Final = "expunge.notify"
"""``notify(delivery_id)``: attempt one webhook delivery."""
PULSE: Final = {UNLEARN: "expunge.pulse.unlearn", IO: "expunge.pulse.io"}
"""``pulse()``: a consumer of that queue writes down that it heard us."""
