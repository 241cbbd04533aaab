"""A ledger of requests: an open-loop load generator and the checker of what a server did with each request.

Theory of operation. Requests are sent when they are due, whether or not earlier ones were answered, and times count
from when a request was due: a server that stalls cannot make the generator wait with it (no coordinated omission). Each
request has an id, a deadline and one of a set of payloads whose right answers were learnt before, one at a time, in the
calm. So the generator knows the only right answer to each request without knowing the model, and works against any
server that speaks the V2 protocol. While the load runs, faults may be injected into the server's processes. At the end
the checker asks of the book: has every request exactly one outcome, does no answer belong to another request, was
nothing answered late, and does the server count what its callers saw?

`book` holds what happened, `schedule` says what is due when, `payloads` knows the right answers, `http` and `grpc`
send, `faults` break things, `counters` reads what the server counts, `checker` judges, `run` puts them together.
"""

from __future__ import annotations

from penstock.ledger.book import ALLOWED, Entry, Event, Target
from penstock.ledger.checker import Violation
from penstock.ledger.faults import Fault
from penstock.ledger.report import Report, Summary
from penstock.ledger.run import capacity, run
from penstock.ledger.schedule import Phase, Plan

__all__ = [
    "ALLOWED",
    "Entry",
    "Event",
    "Fault",
    "Phase",
    "Plan",
    "Report",
    "Summary",
    "Target",
    "Violation",
    "capacity",
    "run",
]
