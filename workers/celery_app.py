"""The doorbell's settings: JSON only, no results, one message at a time, and sockets that notice a dead peer.

Every line below answers a fault that was seen with Celery's Redis transport (docs/adr/0002): half-open connections
that hang for ever, messages lost between BRPOP and unacked, tasks run twice by the visibility timeout. None of them
matters, because a message carries only an id and dispatch rings again.
"""

from __future__ import annotations

import warnings

from celery import Celery
from celery.signals import worker_init

from app import logs, queue, tracing
from app.errors import Misconfigured
from app.settings import load

settings = load()
settings.sqlalchemy_url()  # a worker without a database would swallow rings; better that it does not start
if not settings.redis_url.get_secret_value():
    raise Misconfigured("REDIS_URL must be set; `expunge up` starts a broker by itself")

warnings.filterwarnings(
    "ignore", message="You're running the worker with superuser"
)  # warns root of pickle; we take JSON only
celery = Celery("expunge", broker=settings.redis_url.get_secret_value(), include=["workers.tasks"])
celery.conf.update(
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    task_acks_late=False,  # the lease in PostgreSQL is the redelivery
    task_routes={
        queue.ERASE: queue.UNLEARN,
        queue.PULSE[queue.UNLEARN]: queue.UNLEARN,
        queue.NOTIFY: queue.IO,
        queue.PULSE[queue.IO]: queue.IO,
    },
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,  # nobody steers workers through the broker
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,  # what is printed could quote anything; as it is, it is nobody's line of the log
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "visibility_timeout": 86_400,
    },
    task_publish_retry=False,  # the relay is the retry
)
logs.configure(settings.log_level)


@worker_init.connect(weak=False)
def _own_process(**_: object) -> None:
    """Only where this process is a worker: dispatch and tests import this module, too."""
    logs.own_process()
    tracing.configure("worker", endpoint=settings.otlp_endpoint)
