"""The API as processes: uvicorn with our kind of connection; `expunge api` becomes this."""

from __future__ import annotations

import argparse
import os
import tempfile

import uvicorn

from app import logs
from app.api.wire import MOST_CONNECTIONS, Connection


def main() -> None:
    """Serve until told to stop; the settings come from the environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    logs.configure("INFO")
    if chosen.workers > 1:  # each counts for itself; a scrape, whoever gets it, tells the sum
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="expunge-metrics-"))
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=chosen.host,
        port=chosen.port,
        workers=chosen.workers,
        http=Connection,
        limit_concurrency=MOST_CONNECTIONS,
        ws="none",
        proxy_headers=False,  # app/api/caller_address.py reads them; uvicorn would believe whoever is on this host
        server_header=False,
        access_log=False,
        log_level="warning",
        log_config=None,  # its loggers hand on to ours
    )


if __name__ == "__main__":
    main()
