"""Who may call, and how much: keys, allowed deployments, rates and quotas of the tenants of the route table.

All state is per tenant of the table, never per key that somebody sent or per address: whatever clients do, memory
stays what the table makes it. Time is an argument, in seconds of the wall clock. A jump of the clock grants at most
one burst, and takes nothing away.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from penstock.core.errors import PermissionDenied, QuotaExceeded, Unauthenticated
from penstock.fleet.router.token_limits import TokenAccount
from penstock.fleet.routes import Reply, Tenant

PUBLIC_PATHS = frozenset(("/v2/health/live", "/v2/health/ready"))
"""What probes ask for. They bring no key, and count for nobody."""

_MOST_KEY_BYTES = 1024  # keys have some 40; what is longer is not hashed at all
_MOST_RETRY_AFTER_S = 3600.0


@dataclass(slots=True)
class _Account:
    """What one tenant used. `tokens` are of its bucket, as of `at`."""

    tenant: Tenant
    tokens: float
    at: float
    period: int = -1  # number of the quota's period that `used` belongs to, counted from the epoch
    used: int = 0
    exhausted_until: float = 0.0  # as all routers together found
    share: float = 1.0  # of the tenant's rates that is this router's
    tokens_of_models: TokenAccount = field(default_factory=TokenAccount)


class Tenants:
    """The tenants of one router. With none, everybody is let in (`required` is false, `authenticate` gives None).

    A request's way: `authenticate` before its route is looked for, so that strangers learn nothing; `admit` once it is
    known. Every second `take_used` goes into the report, and what comes back to `replied`.
    """

    __slots__ = ("_accounts", "_by_mark", "_secret", "_tenants", "_used", "required")

    def __init__(self, tenants: Iterable[Tenant] = (), *, now: float = 0.0) -> None:
        self._secret = os.urandom(16)
        self._tenants: tuple[Tenant, ...] = ()
        self._by_mark: dict[bytes, tuple[bytes, _Account]] = {}
        self._accounts: dict[str, _Account] = {}
        self._used: dict[str, int] = {}
        self.required = False
        self.update(tenants, now)

    def update(self, tenants: Iterable[Tenant], now: float) -> None:
        """Takes over the tenants of a new table. Who stays keeps bucket and quota, also with a new key or other limits;
        who is new starts with a full burst. Of two tenants with one key the first has it."""
        tenants = tuple(tenants)
        if tenants == self._tenants:
            return  # tables change often, their tenants seldom
        accounts: dict[str, _Account] = {}
        by_mark: dict[bytes, tuple[bytes, _Account]] = {}
        for tenant in tenants:
            account = self._accounts.get(tenant.name)
            if account is None:
                account = _Account(tenant, float(tenant.burst), now)
            else:
                _refill(account, now)
                account.tenant = tenant
                account.tokens = min(account.tokens, float(tenant.burst))
            accounts[tenant.name] = account
            digest = _read_digest(tenant.key_sha256)
            if digest is not None:
                by_mark.setdefault(self._mark(digest), (digest, account))
        self._tenants, self._accounts, self._by_mark = tenants, accounts, by_mark
        self.required = bool(tenants)

    def authenticate(self, authorization: str | bytes | None, api_key: str | bytes | None = None) -> Tenant | None:
        """The tenant whose key a request shows, in `Authorization: Bearer KEY` or `X-API-Key: KEY`; None where no
        tenants are. With both headers, `Authorization` counts.

        Raises:
            Unauthenticated: no key, or one of nobody.
        """
        if not self.required:
            return None
        if authorization is not None:
            scheme, _, presented = _octets(authorization).partition(b" ")
            presented = presented.strip() if scheme.lower() == b"bearer" else b""
        else:
            presented = _octets(api_key or b"")
        if not presented:
            raise Unauthenticated(
                "an API key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY` (metadata of the "
                "same names over gRPC)"
            )
        found = self._find(presented)
        if found is None:
            raise Unauthenticated("the API key is not known here; ask who runs this platform for a new one")
        return found

    def _find(self, presented: bytes) -> Tenant | None:
        """Looked up under a keyed hash of the digest, whose key nobody outside knows: the time a look-up takes tells
        nothing about other keys, and does not grow with their number as comparing with each would. The one candidate is
        then compared in constant time."""
        if len(presented) > _MOST_KEY_BYTES:
            return None
        digest = hashlib.sha256(presented).digest()
        known, account = self._by_mark.get(self._mark(digest), (b"", None))
        if hmac.compare_digest(digest, known) and account is not None:
            return account.tenant
        return None

    def _mark(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=16, key=self._secret).digest()

    def admit(self, tenant: Tenant | None, deployment: str, now: float) -> None:
        """Counts one request of a tenant for a deployment, or refuses it; what is refused counts nowhere.

        Raises:
            PermissionDenied: the tenant may not call this deployment.
            QuotaExceeded: its rate or its quota is used up; `retry_after_s` says until when.
        """
        if tenant is None:
            return
        if tenant.deployments and deployment not in tenant.deployments:
            raise PermissionDenied(f"tenant {tenant.name} may not call {deployment!r}")
        if tenant.rate is None and tenant.quota is None and tenant.tokens_per_minute is None:
            return
        account = self._accounts.get(tenant.name)
        if account is None:  # it left the table while this request was on its way
            raise Unauthenticated("the API key is not known here any more")
        tenant = account.tenant
        if tenant.quota is not None:
            self._check_quota(account, tenant.quota, now)
        if tenant.rate is not None:
            _refill(account, now)
            if account.tokens < 1.0:
                rate = tenant.rate * account.share
                wait_s = (1.0 - account.tokens) / rate if rate > 0 else _MOST_RETRY_AFTER_S
                raise QuotaExceeded(
                    f"tenant {tenant.name} may send {tenant.rate:g} requests/s, {tenant.burst} at once; slow down",
                    retry_after_s=min(wait_s, _MOST_RETRY_AFTER_S),
                )
            account.tokens -= 1.0
        account.used += 1
        self._used[tenant.name] = self._used.get(tenant.name, 0) + 1

    def reserve(
        self, tenant: Tenant, deployment: str, tokens: float, now: float, clock: Callable[[], float]
    ) -> Callable[[float], None] | None:
        """As `admit`, of a request to a language model that will probably take so many tokens. What it gives is to be
        called once with how many it took; None: nobody counts them."""
        limited = tenant.tokens_per_minute is not None or tenant.tokens_per_day is not None
        account = self._accounts.get(tenant.name)
        if not limited or account is None:
            self.admit(tenant, deployment, now)
            return None
        if tenant.deployments and deployment not in tenant.deployments:
            self.admit(tenant, deployment, now)
        tenant, ledger = account.tenant, account.tokens_of_models
        per_minute = tenant.tokens_per_minute
        reserved = ledger.reserve(tenant.name, per_minute, tenant.tokens_per_day, account.share, tokens, now)

        def settle(used: float) -> None:
            ledger.settle(reserved, used, account.tenant.tokens_per_minute, clock())

        try:
            self.admit(tenant, deployment, now)
        except Exception:
            settle(0.0)
            raise
        return settle

    def take_tokens(self) -> dict[str, int]:
        """As `take_used`, of tokens of those that have a number per day."""
        taken = {}
        for name, account in self._accounts.items():
            whole = int(account.tokens_of_models.unreported)
            if whole and account.tenant.tokens_per_day is not None:
                account.tokens_of_models.unreported -= whole
                taken[name] = whole
        return taken

    def keep_tokens(self, taken: Mapping[str, int]) -> None:
        """Takes back what `take_tokens` gave."""
        for name, count in taken.items():
            if name in self._accounts:
                self._accounts[name].tokens_of_models.unreported += count

    def _check_quota(self, account: _Account, quota: int, now: float) -> None:
        """What this router alone counted is enough to refuse: so a quota holds, at most once per router, while the
        controller that adds all of them up is dead."""
        length_s = max(account.tenant.quota_period_s, 1e-3)
        period = int(now // length_s)
        if period != account.period:
            account.period, account.used = period, 0
        until = account.exhausted_until
        if account.used >= quota:
            until = max(until, (period + 1) * length_s)
        if until > now:
            raise QuotaExceeded(
                f"tenant {account.tenant.name} has used up its quota of {quota:,} requests per {length_s:g} s",
                retry_after_s=until - now,
            )

    def take_used(self) -> dict[str, int]:
        """Requests admitted since the last call, by tenant, of those that have a rate or a quota: for
        `Report.quota_used`."""
        used, self._used = self._used, {}
        return used

    def keep_used(self, used: Mapping[str, int]) -> None:
        """Takes back what `take_used` gave, because the report did not arrive; it goes into the next one."""
        for name, count in used.items():
            if name in self._accounts:
                self._used[name] = self._used.get(name, 0) + count

    def replied(self, reply: Reply) -> None:
        """Obeys the controller's answer to a report. Each answer is the whole truth: who is not named may go on."""
        for name, account in self._accounts.items():
            account.exhausted_until = reply.exhausted.get(name, 0.0)
            account.tokens_of_models.exhausted_until = reply.tokens_exhausted.get(name, 0.0)
            account.share = min(1.0, max(0.0, reply.shares.get(name, 1.0)))


def _octets(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "replace")


def _refill(account: _Account, now: float) -> None:
    """Token bucket: `rate` tokens a second up to `burst`. Source: RFC 2697, section 3, of one rate."""
    passed_s, account.at = now - account.at, now
    tenant = account.tenant
    if tenant.rate is not None and passed_s > 0:
        account.tokens = min(float(tenant.burst), account.tokens + passed_s * tenant.rate * account.share)


def _read_digest(text: str) -> bytes | None:
    """None of what is no SHA-256 in hex: nobody has such a key."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return digest if len(digest) == hashlib.sha256().digest_size else None
