"""File descriptors of this process: how many connections fit into them."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

from ..limits import Limits

LOG = logging.getLogger("clipfake.service")
ENOUGH = 65_536  # descriptors; a higher limit makes programs slow that close each one


def raise_descriptor_limit() -> int | None:
    """Raise the limit of open descriptors as far as this process may; returns it, or None where there is none."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if wanted > soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def fitted(limits: Limits, descriptors: int | None) -> Limits:
    """Return limits whose connections take at most half of the descriptors; the files of the store need the others.

    A quarter of the connections stays for requests that no limit counts, such as /healthz.

    >>> fitted(Limits(), 256).connections, fitted(Limits(), 256).requests
    (128, 96)
    """
    connections = limits.connections if descriptors is None else min(limits.connections, max(4, descriptors // 2))
    if connections < limits.connections:
        message = "only %d connections at a time, not %d: the process may open %d files; raise `ulimit -n` to %d"
        LOG.warning(message, connections, limits.connections, descriptors, 2 * limits.connections)
    return replace(
        limits,
        connections=connections,
        client_connections=min(limits.client_connections, connections - connections // 4),
        requests=min(limits.requests, connections - connections // 4),
    )
