"""Every table of the platform, for SQLite and PostgreSQL alike. Times are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

metadata = MetaData()

# What routers write, each directly: see `store.decisions`. Nothing here refers to the controller's tables, so that a
# late reward of a deployment that is gone breaks nothing.

decisions = Table(
    "decisions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("deployment", String(63), nullable=False),
    Column("experiment", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("at", Double, nullable=False),
    Column("context", LargeBinary),  # float64, little-endian
    Index("decisions_by_time", "deployment", "at", "id"),
)

rewards = Table(
    "rewards",
    metadata,
    Column("id", String(32), primary_key=True),  # of the decision, which may have left the log
    Column("deployment", String(63), nullable=False),
    Column("reward", Double, nullable=False),
    Column("decided_at", Double, nullable=False),
    Column("received_at", Double, nullable=False),
    Index("rewards_by_time", "deployment", "decided_at"),
)

# The rewards of decisions made before `before` are forgotten, so that no others are taken: they might count twice.
reward_horizons = Table(
    "reward_horizons",
    metadata,
    Column("deployment", String(63), primary_key=True),
    Column("before", Double, nullable=False),
)

arm_statistics = Table(
    "arm_statistics",
    metadata,
    Column("deployment", String(63), nullable=False),
    Column("experiment", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("rewards", BigInteger, nullable=False),
    Column("reward_sum", Double, nullable=False),
    Column("reward_squares", Double, nullable=False),
    PrimaryKeyConstraint("deployment", "experiment", "revision"),
)

arm_latencies = Table(
    "arm_latencies",
    metadata,
    Column("deployment", String(63), nullable=False),
    Column("experiment", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("bucket", Integer, nullable=False),  # of state.LATENCY_BOUNDS_S
    Column("requests", BigInteger, nullable=False),
    PrimaryKeyConstraint("deployment", "experiment", "revision", "bucket"),
)

# One row where a column per number would be d² rows: a writer adds to it while it holds the row.
arm_sums = Table(
    "arm_sums",
    metadata,
    Column("deployment", String(63), nullable=False),
    Column("experiment", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("gram", LargeBinary, nullable=False),  # float64, little-endian, d·d
    Column("moment", LargeBinary, nullable=False),  # float64, little-endian, d
    PrimaryKeyConstraint("deployment", "experiment", "revision"),
)

# What a shadow's answers look like beside the real ones: one JSON document, to which every router adds.
comparisons = Table(
    "comparisons",
    metadata,
    Column("deployment", String(63), nullable=False),
    Column("experiment", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),  # the shadow
    Column("document", Text, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("deployment", "experiment", "revision"),
)

# The last batch that each router's recorder has written. A batch whose commit got no answer is sent again, and counts
# once.
writers = Table(
    "writers",
    metadata,
    Column("writer", String(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)

# What the controller alone writes. Values with a shape of their own (a wish, a run, a policy's memory) are JSON texts:
# nobody selects by their parts.

# SQLite gives out ids by itself only to columns of exactly this type.
_ID = BigInteger().with_variant(Integer, "sqlite")
_NAME = String(63)

# One row: who this fleet is. `version` counts every change that routers or watchers could see; it only grows.
fleet = Table(
    "fleet",
    metadata,
    Column("only", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("id", String(32), nullable=False),
    Column("secret", String(64), nullable=False),  # hex; signs decision tokens
    Column("version", BigInteger, nullable=False),
    Column("schema", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("document", Text, nullable=False),  # the wish, as `spec.write` gives it
    Column("revision", Integer, nullable=False),  # the number whose run the wish has
    Column("next_revision", Integer, nullable=False),  # the next number: never one that was used
    Column("paused", Boolean, nullable=False),
    Column("deleting", Boolean, nullable=False),
    # The revision that becomes the only arm as soon as enough of it is ready: "any" replica, or "all" of them.
    Column("switch_to", Integer),
    Column("switch_when", String(8), nullable=False),
    Column("size", Integer, nullable=False),  # replicas wished, all arms together
    Column("size_reason", Text, nullable=False),
    Column("size_memory", Text, nullable=False),  # JSON: the scaling policies' own, by their place in the wish
    Column("created_at", Double, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    Column("deployment", _NAME, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("run", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("phase_at", Double, nullable=False),
    Column("reason", Text, nullable=False),
)

# What the first replica of a revision loaded; later ones load the same or do not start.
contents = Table(
    "contents",
    metadata,
    Column("deployment", _NAME, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("content", Text, nullable=False),  # JSON, as `state.Replica.content`
)

# `ended_at` is null for the one that goes on. `verdict` is JSON: why it ended. Ids are never used again, because
# statistics and decisions outlive their deployment.
experiments = Table(
    "experiments",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("deployment", _NAME, nullable=False),
    Column("policy", Text, nullable=False),
    Column("arms", Text, nullable=False),
    Column("stable", Integer, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("memory", Text, nullable=False),
    Column("weights", Text, nullable=False),
    Column("alarms", Text, nullable=False),
    Column("explanation", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Index("experiments_of_deployment", "deployment", "id"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("deployment", _NAME, nullable=False),
    Column("at", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("message", Text, nullable=False),
    Index("events_of_deployment", "deployment", "id"),
    sqlite_autoincrement=True,
)

# What was given to each replica that was started, so that a controller that starts later knows what is taken.
placements = Table(
    "placements",
    metadata,
    Column("replica", String(96), primary_key=True),
    Column("deployment", _NAME, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("place", Text, nullable=False),
    Column("gpu_shares", Text, nullable=False),  # JSON: by device index
    Column("started_at", Double, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("key_sha256", String(64), nullable=False, unique=True),
    Column("rate", Double),
    Column("burst", Integer, nullable=False),
    Column("quota", BigInteger),
    Column("quota_period_s", Double, nullable=False),
    Column("weight", Double, nullable=False),
    Column("deployments", Text, nullable=False),  # JSON: names; [] is all
)

# Limits of tokens of language models, apart from the other limits so that databases of before need no change.
token_limits = Table(
    "token_limits",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("tokens_per_minute", BigInteger),
    Column("tokens_per_day", BigInteger),
)

# Tokens of a tenant in the day that began at `day_at`; older days are deleted.
token_quotas = Table(
    "token_quotas",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("day_at", Double, primary_key=True),
    Column("used", BigInteger, nullable=False),
)

# Requests of a tenant in the quota period that began at `period_at`; older periods are deleted.
quotas = Table(
    "quotas",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("period_at", Double, primary_key=True),
    Column("used", BigInteger, nullable=False),
)
