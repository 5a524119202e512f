"""What to install for the peers: an environment for each product, and for each server's client that it needs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ENVIRONMENTS", "NAMES", "Environment", "environment_of"]


@dataclass(frozen=True)
class Environment:
    """One virtual environment."""

    requirements: tuple[str, ...]
    """A major version is held, or a minor one before 1.0, as adapters are written for it."""
    python: tuple[int, int] = (3, 11)
    """The oldest Python that the product runs on."""


PSYCOPG = "psycopg[binary,pool]~=3.2"
"""For products that use it, and to count transactions and results of those that do not."""

ENVIRONMENTS = {
    "huey": Environment(("huey~=3.0",)),
    "litequeue": Environment(("litequeue~=0.9",)),
    "dramatiq": Environment(("dramatiq~=2.0",)),
    "taskiq": Environment(("taskiq~=0.12",)),
    # Wherever it has a choice, redis-py parses with hiredis.
    "arq-redis": Environment(("arq~=0.28.0",)),
    "saq-redis": Environment(("saq[hiredis,redis]~=0.26.0", "typing_extensions>=4")),
    "taskiq-redis": Environment(("taskiq~=0.13.0", "taskiq-redis~=1.2.0", "hiredis~=3.0")),
    "dramatiq-redis": Environment(("dramatiq[redis]~=2.0", "hiredis~=3.0")),
    "rq-redis": Environment(("rq~=2.12", "hiredis~=3.0")),
    "celery-redis": Environment(("celery[redis]~=5.7", "hiredis~=3.0")),
    "huey-redis": Environment(("huey~=3.0", "redis[hiredis]>=6")),
    "tarsk-redis": Environment(("tarsk-redis~=0.2.1",)),
    "ardiq-redis": Environment(("ardiq~=1.2",), python=(3, 12)),
    "mayu-redis": Environment(("mayu~=0.2.5",), python=(3, 13)),
    "streaq-redis": Environment(("streaq~=7.2",)),
    "procrastinate-postgres": Environment(("procrastinate~=3.10", PSYCOPG)),
    "pgqueuer-postgres": Environment(("pgqueuer[asyncpg]~=1.6", PSYCOPG)),
    "saq-postgres": Environment(("saq[postgres]~=0.26.0", "typing_extensions>=4", PSYCOPG)),
    "oban-postgres": Environment(("oban~=0.7.0", PSYCOPG), python=(3, 12)),
    "flexiq-postgres": Environment(("flexiq~=2.1", PSYCOPG)),
    "taskiq-nats": Environment(("taskiq~=0.13.0", "taskiq-nats~=0.7.0")),
}
"""By ``NAME-STORE``, or by the name alone where the product needs no server."""

NAMES = tuple(dict.fromkeys(key.partition("-")[0] for key in ENVIRONMENTS))


def environment_of(name: str, store: str) -> str:
    """Return the key of the environment of a product on a store."""
    key = f"{name}-{store}"
    return key if key in ENVIRONMENTS else name
