"""Who may call: tenants and what they used of their quotas. Keys are made here, shown once, and kept as digests."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping

from sqlalchemy import delete, insert, select, update

from penstock.core.errors import NotFound
from penstock.core.nearest import nearest
from penstock.fleet.routes import Tenant
from penstock.fleet.store import rows, schema
from penstock.fleet.store.store import Store

DAY_S = 86400.0
TOKEN_LIMITS = ("tokens_per_minute", "tokens_per_day")


def tenants(store: Store) -> tuple[Tenant, ...]:
    """All tenants by name."""
    limits = schema.token_limits
    with store.reading() as connection:
        found = connection.execute(select(schema.tenants).order_by(schema.tenants.c.name)).mappings().all()
        tokens = {row["tenant"]: row for row in connection.execute(select(limits)).mappings()}
    return tuple(
        Tenant(
            **{**row, "deployments": tuple(json.loads(row["deployments"]))},
            **{name: tokens[row["name"]][name] for name in TOKEN_LIMITS if row["name"] in tokens},
        )
        for row in found
    )


def put_tenant(store: Store, name: str, limits: Mapping[str, object]) -> str | None:
    """Makes a tenant and gives its key, this once; of one that exists the limits change and the key stays (None).

    `limits` are `routes.Tenant`'s fields but name and key."""
    values = {
        **{key: value for key, value in limits.items() if key not in TOKEN_LIMITS},
        "deployments": json.dumps(limits.get("deployments", [])),
    }
    tokens = {key: limits.get(key) for key in TOKEN_LIMITS}
    table = schema.tenants
    with store.writing() as connection:
        rows.bump(connection)
        connection.execute(delete(schema.token_limits).where(schema.token_limits.c.tenant == name))
        if any(value is not None for value in tokens.values()):
            connection.execute(insert(schema.token_limits).values(tenant=name, **tokens))
        if connection.execute(select(table.c.name).where(table.c.name == name)).first():
            connection.execute(update(table).where(table.c.name == name).values(**values))
            return None
        key = f"pk-{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(key.encode()).hexdigest()
        connection.execute(insert(table).values(name=name, key_sha256=digest, **values))
    return key


def delete_tenant(store: Store, name: str) -> None:
    """Raises: NotFound."""
    table = schema.tenants
    with store.writing() as connection:
        rows.bump(connection)
        if not connection.execute(delete(table).where(table.c.name == name)).rowcount:
            known = connection.execute(select(table.c.name)).scalars().all()
            raise NotFound(f"there is no tenant {name[:80]!r}{nearest(name, known)}")
        for kept in (schema.quotas, schema.token_limits, schema.token_quotas):
            connection.execute(delete(kept).where(kept.c.tenant == name))


def use_quotas(store: Store, used: Mapping[str, int], known: Mapping[str, Tenant], now: float) -> dict[str, float]:
    """Adds what routers reported, and gives the tenants whose quota is used up, with the time when the next begins.

    Periods are whole multiples of `quota_period_s` since the epoch, so that every process agrees on them."""
    exhausted: dict[str, float] = {}
    table = schema.quotas
    with store.writing() as connection:
        for name, tenant in known.items():
            if tenant.quota is None:
                continue
            begun = now - now % tenant.quota_period_s
            this = (table.c.tenant == name) & (table.c.period_at == begun)
            count = connection.execute(select(table.c.used).where(this)).scalar()
            if more := used.get(name, 0):
                if count is None:
                    connection.execute(delete(table).where(table.c.tenant == name, table.c.period_at < begun))
                    connection.execute(insert(table).values(tenant=name, period_at=begun, used=more))
                else:
                    connection.execute(update(table).where(this).values(used=table.c.used + more))
            if (count or 0) + more >= tenant.quota:
                exhausted[name] = begun + tenant.quota_period_s
    return exhausted


def use_tokens(store: Store, used: Mapping[str, int], known: Mapping[str, Tenant], now: float) -> dict[str, float]:
    """As `use_quotas`, of tokens per day."""
    exhausted: dict[str, float] = {}
    table = schema.token_quotas
    begun = now - now % DAY_S
    with store.writing() as connection:
        for name, tenant in known.items():
            if tenant.tokens_per_day is None:
                continue
            this = (table.c.tenant == name) & (table.c.day_at == begun)
            count = connection.execute(select(table.c.used).where(this)).scalar()
            if more := used.get(name, 0):
                if count is None:
                    connection.execute(delete(table).where(table.c.tenant == name, table.c.day_at < begun))
                    connection.execute(insert(table).values(tenant=name, day_at=begun, used=more))
                else:
                    connection.execute(update(table).where(this).values(used=table.c.used + more))
            if (count or 0) + more >= tenant.tokens_per_day:
                exhausted[name] = begun + DAY_S
    return exhausted
