"""What a service counts and measures, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Observer:
    """The metrics of one service, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time and open files, where the system tells them
        self._requests = Counter(
            "trireid_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "trireid_request_seconds",
            "Time from the head of a request to the end of its answer",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch = {
            kind: (
                Histogram(
                    f"trireid_{kind}_batch_entries",
                    f"Entries of several requests in one batch ({kind})",
                    buckets=_COUNTS,
                    registry=registry,
                ),
                Histogram(
                    f"trireid_{kind}_wait_seconds",
                    f"Time that the oldest request of a batch waited ({kind})",
                    buckets=_SECONDS,
                    registry=registry,
                ),
            )
            for kind in ("embed", "search")
        }
        self.in_flight = Gauge("trireid_requests_in_flight", "Requests that are worked on", registry=registry)
        self.buffered = Gauge("trireid_buffered_bytes", "Bytes of bodies that are held", registry=registry)
        self.items = Gauge("trireid_gallery_items", "Items of the gallery", registry=registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            method: of HTTP.
            route: the pattern of the address, not the address: it may hold a name of a user.
            status: of the answer.
            seconds: that it took.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def batch(self, kind: str, entries: int, seconds: float) -> None:
        """Count a batch of `embed` or `search`."""
        size, wait = self._batch[kind]
        size.observe(entries)
        wait.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
