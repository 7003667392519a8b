"""The open connections: how many there may be, and which one is closed to make room for another."""

from __future__ import annotations

import logging
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Protocol

from ..limits import Limits
from ..metrics import ServiceMetrics

LOG = logging.getLogger("clipfake.service")
REFUSED = 16  # refused connections that still read their answer


class Connection(Protocol):
    """What the registry needs of a connection."""

    client_name: str  # who opened it, see `client_name`

    def drop(self) -> None:
        """Close it at once."""


class ConnectionRegistry:
    """Open connections, at most `limits.connections`.

    A connection is busy while a request of it is answered, and otherwise waits: for the head of a request, or for a
    client that does not read its answer. If all are open, a new connection replaces the one that has waited longest
    among those of the client with the most. It is refused only if no such connection waits, so that nobody can keep
    others out by opening connections.
    """

    def __init__(self, limits: Limits, metrics: ServiceMetrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._waiting: dict[Connection, None] = {}  # longest first
        self._busy: set[Connection] = set()
        self._refused: dict[Connection, None] = {}  # oldest first
        self._of_client: Counter[str] = Counter()

    def admit(self, connection: Connection) -> bool:
        """Add a connection, if need be in the place of another; False if it must be refused."""
        client, limits = connection.client_name, self._limits
        if client and self._of_client[client] >= limits.client_connections:
            room = self._close_oldest(client)
        elif len(self._waiting) + len(self._busy) >= limits.connections:
            [(crowd, _)] = self._of_client.most_common(1)
            room = self._close_oldest(crowd) or self._close_oldest()
        else:
            room = True
        if room:
            self._waiting[connection] = None
            self._of_client[client] += 1
            self._metrics.connections.inc()
        else:
            self._refuse(connection)
        return room

    def mark(self, connection: Connection, *, busy: bool) -> None:
        """Note whether a request of a connection is being answered."""
        if busy and connection in self._waiting:
            del self._waiting[connection]
            self._busy.add(connection)
        elif not busy and connection in self._busy:
            self._busy.remove(connection)
            self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that was closed; nothing happens if it is not known."""
        self._refused.pop(connection, None)
        if connection not in self._waiting and connection not in self._busy:
            return
        self._waiting.pop(connection, None)
        self._busy.discard(connection)
        self._metrics.connections.dec()
        self._of_client[connection.client_name] -= 1
        if not self._of_client[connection.client_name]:
            del self._of_client[connection.client_name]

    def make_room(self, count: int) -> None:
        """Close up to this many connections, those that have waited longest."""
        for _ in range(count):
            if not self._close_oldest():
                return

    def count_closed(self, reason: str) -> None:
        """Count a connection that the service closed or refused."""
        self._metrics.closed.labels(reason).inc()

    def _refuse(self, connection: Connection) -> None:
        """Count a refused connection, and close the first of those that still read their answer if they are many."""
        LOG.warning("a connection was refused: all are in use by requests")
        self.count_closed("refused")
        self._refused[connection] = None
        if len(self._refused) > REFUSED:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            oldest.drop()

    def _close_oldest(self, client: str | None = None) -> bool:
        """Close the connection, of one client or of any, that has waited longest; False if there is none."""
        oldest = next((c for c in self._waiting if client in (None, c.client_name)), None)
        if oldest is None:
            return False
        self.remove(oldest)
        oldest.drop()
        LOG.warning("a connection without a request was closed to make room for a new one")
        self.count_closed("replaced")
        return True


def client_name(address: str) -> str:
    """Name of the client at an IP address: one IPv4 address, or an IPv6 network of 64 bits, as one client has it.

    The name of this machine is empty: a proxy or several users may connect from it, so no client's limit applies.

    >>> client_name("192.0.2.7"), client_name("::ffff:192.0.2.7"), client_name("2001:db8::7"), client_name("127.0.0.1")
    ('192.0.2.7', '192.0.2.7', '2001:db8::/64', '')
    """
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if ip.version == 6 and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return ""
    return str(ip) if ip.version == 4 else str(ip_network((ip, 64), strict=False))
