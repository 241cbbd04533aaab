"""Every table of the platform, for SQLite and PostgreSQL alike. Times are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
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
