"""What the service measures, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from pyinv import __version__
from pyinv.serving.lanes import Lanes

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The service's counters.

    Args:
        bundle: the bundle's digest.
        lanes: returns the open streams.
        ready: returns whether the service is ready.
    """

    def __init__(
        self, bundle: str, lanes: Callable[[], list[Lanes]], ready: Callable[[], bool]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        info = Info("pyinv", "What is served.", registry=registry)
        info.info({"version": __version__, "bundle": bundle})
        self.requests = Counter(
            "pyinv_requests", "Requests that ended.", ["endpoint", "code"], registry=registry
        )
        self.seconds = Histogram(
            "pyinv_request_seconds",
            "Seconds from a request's start to its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.targets = Counter(
            "pyinv_targets", "Images that were inverted.", ["status"], registry=registry
        )
        self.failures = Counter("pyinv_failures", "Runs that failed.", registry=registry)
        self.under_way = Gauge("pyinv_requests_active", "Requests under way.", registry=registry)

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(name, text, registry=registry).set_function(value)

        gauge("pyinv_ready", "1 if requests are accepted.", lambda: float(ready()))
        gauge("pyinv_streams", "Open streams.", lambda: len(lanes()))
        gauge("pyinv_lanes", "Lanes of open streams.", lambda: sum(s.plan.lanes for s in lanes()))
        gauge("pyinv_lanes_active", "Lanes at work.", lambda: sum(s.active for s in lanes()))
        gauge("pyinv_queue", "Images waiting for a lane.", lambda: sum(s.waiting for s in lanes()))

    def text(self) -> bytes:
        """Return all values."""
        return generate_latest(self._registry)
