"""What Prometheus scrapes. One registry an application, so that several can live in one process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "modelpress_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "modelpress_http_request_seconds",
            "Time until the whole answer was sent",
            ["method", "route"],
            registry=self.registry,
        )
        self._jobs = Gauge("modelpress_jobs", "Jobs by state", ["kind", "status"], registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def page(self, jobs: dict[tuple[str, str], int]) -> bytes:
        """`jobs`: how many by (kind, status)."""
        self._jobs.clear()
        for (kind, status), count in jobs.items():
            self._jobs.labels(kind, status).set(count)
        return generate_latest(self.registry)
