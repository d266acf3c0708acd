"""The toy model registered once, to be cloned; and a running house with a broker that can freeze, one for each file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url

from app.embedded import Valkey
from app.storage.sessions import transaction
from tests.e2e.listener import Listener
from tests.faults import Proxy
from tests.house import Installation, installation
from tests.pipeline import Bench
from tests.services import new_database

PROCESSES = ("api", "dispatch", "worker-io", "worker-unlearn")


@dataclass(frozen=True)
class Registered:
    """An installation whose database is a template: nobody may be connected to it."""

    server: str
    template: str
    home: Path
    keys: dict[str, Any]

    @contextmanager
    def cloned(self, redis_url: str = "", *, template: str = "", **more: Any) -> Iterator[Installation]:
        """The same model, keys and model store on a database of its own."""
        with (
            new_database(self.server, template or self.template) as url,
            installation(
                self.home, url, redis_url, model=False, **self.keys, log_directory=self.home / uuid4().hex, **more
            ) as house,
        ):
            yield house


@pytest.fixture(scope="session")
def registered(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registered]:
    """The toy model, registered by the command line as its owner would."""
    home = tmp_path_factory.mktemp("registered")
    with new_database(postgres_server, template_database) as url:
        with installation(home, url, "") as house:
            keys = {
                name: getattr(house.settings, name) for name in ("index_key", "wrapping_key", "signing_key", "log_key")
            }
        yield Registered(postgres_server, str(make_url(url).database), home, keys)


@dataclass(frozen=True)
class Grounds:
    """A running house, and the hands on its broker and its webhook receiver."""

    house: Installation
    bench: Bench
    valkey: Valkey
    proxy: Proxy
    listener: Listener
    people: Iterator[int]
    """Members nobody has asked about yet."""
    nobodies: Iterator[int]
    """People no model has ever seen."""
    asked: set[int] = field(default_factory=set)

    def demand(self) -> UUID:
        """A member asks to be forgotten."""
        person = next(self.people)
        self.asked.add(person)
        return self.house.demand(person)

    def demand_of_nobody(self) -> UUID:
        """Somebody asks of whom there is nothing: a whole way without torch."""
        return self.house.demand(next(self.nobodies))

    def everything_runs(self) -> None:
        """Bring back what a test took away."""
        if not self.valkey.running:
            self.valkey.start()
        for name in PROCESSES:
            if self.house.processes[name].poll() is not None:
                self.house.start(name)
        self.house.wait_for_api()

    def rows(self, query: Any) -> Sequence[Any]:  # Any: SQLAlchemy's select of whatever is asked
        with transaction(self.house.engine) as tx:
            return tx.execute(query).all()


@pytest.fixture(scope="module")
def grounds(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    """All processes of a house; its broker is reached through a proxy, its webhooks go to 127.0.0.2."""
    with (
        Valkey(tmp_path_factory.mktemp("broker")) as valkey,
        Proxy("127.0.0.1", valkey.port) as proxy,
        Listener("127.0.0.2") as listener,
        registered.cloned(
            valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/"),
            processes=PROCESSES,
            webhook_allow=(ip_network("127.0.0.2/32"),),
        ) as house,
    ):
        # Person 1 is forgotten in two rungs: their loss is then smaller than nearly every stranger's, and not believed.
        yield Grounds(house, Bench(house), valkey, proxy, listener, itertools.count(2), itertools.count(99_000))
