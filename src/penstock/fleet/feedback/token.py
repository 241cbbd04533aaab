"""The decision token: what an answer carries so that a reward can come back for it, late and to any router.

A token holds the whole decision, signed, so that a reward can be counted without looking anything up: also when the
decision was dropped from the log, or its experiment ended long ago. It says nothing secret, and only who has the key
can make one. URL-safe, some 80 characters; a context adds 11 for each of its numbers.

Format, version 1, in base64url without padding: one byte of version; id (8 bytes), time (float64), propensity
(float64), experiment (uint64), revision (uint32), all big-endian; the deployment's name after its length (one byte);
the context's float64s after their number (uint16); the first 16 bytes of the HMAC-SHA256 over all that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import struct

from penstock.core.errors import InvalidInput
from penstock.fleet.store.batch import Decision

MOST_CONTEXT = 256  # numbers; a header holds some 8 KiB
MOST_CHARACTERS = 4096
VALID_S = 30 * 86400.0  # how long a decision takes a reward
_AHEAD_S = 300.0  # by which clocks of two machines may differ
_VERSION = 1
_FIXED = struct.Struct(">B8sddQIB")
_MAC_BYTES = 16  # 128 bits, as RFC 2104 section 5 allows
_PURPOSE = b"penstock decision token"  # the table's secret may sign other things too


def sign(decision: Decision, secret: str) -> str:
    """The token of a decision. `secret` is the route table's, in hex."""
    name = decision.deployment.encode()
    body = _FIXED.pack(
        _VERSION, bytes.fromhex(decision.id), decision.at, decision.propensity, decision.experiment, decision.revision,
        len(name),
    )  # fmt: skip
    body += name + struct.pack(f">H{len(decision.context)}d", len(decision.context), *decision.context)
    return base64.urlsafe_b64encode(body + _mac(body, secret)).rstrip(b"=").decode()


def verify(token: object, secret: str, deployment: str, now: float) -> Decision:
    """The decision of a token.

    Raises:
        InvalidInput: it is no token, was cut, changed or signed with another key, belongs to another deployment, or is
            older than `VALID_S`.
    """
    if not isinstance(token, str) or not token:
        raise InvalidInput("token is a text: the value of an answer's penstock-decision")
    if len(token) > MOST_CHARACTERS:
        raise InvalidInput(f"the token has {len(token):,} characters; none has more than {MOST_CHARACTERS:,}")
    try:
        data = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidInput("the token is cut or changed: send an answer's penstock-decision as it was") from None
    if data[:1] != bytes((_VERSION,)):
        raise InvalidInput("this is no decision token of this version: send an answer's penstock-decision as it was")
    body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    # Also refuses a second spelling of the same bytes, which base64 has for the last character.
    if not secret or not hmac.compare_digest(_mac(body, secret), mac) or _spelt(data) != token:
        raise InvalidInput("the token was not made here, or is cut or changed: send an answer's penstock-decision")
    decision = _unpacked(body)
    if decision.deployment != deployment:
        raise InvalidInput(f"the token belongs to {decision.deployment}; send it there, not to {deployment}")
    if now - decision.at > VALID_S:
        days = (now - decision.at) / 86400
        raise InvalidInput(f"the decision was made {days:.0f} days ago; it takes a reward for {VALID_S / 86400:.0f}")
    if decision.at - now > _AHEAD_S:
        raise InvalidInput("the token is of a time to come: the clocks of two machines differ by minutes")
    return decision


def _unpacked(body: bytes) -> Decision:
    """The decision of a body whose signature was right, so that we wrote it."""
    _, identity, at, propensity, experiment, revision, size = _FIXED.unpack_from(body)
    start = _FIXED.size
    name = body[start : start + size].decode()
    (count,) = struct.unpack_from(">H", body, start + size)
    context = struct.unpack_from(f">{count}d", body, start + size + 2)
    return Decision(identity.hex(), name, experiment, revision, propensity, at, context)


def usable(context: tuple[float, ...]) -> bool:
    """Whether a context fits into a token."""
    return len(context) <= MOST_CONTEXT and all(math.isfinite(number) for number in context)


def _mac(body: bytes, secret: str) -> bytes:
    key = hmac.digest(bytes.fromhex(secret), _PURPOSE, hashlib.sha256)
    return hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES]


def _spelt(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
