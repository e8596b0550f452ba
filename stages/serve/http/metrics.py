"""What the service counts, for Prometheus; a registry of its own, few labels."""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import Response

from stages.serve.http.catalogue import Catalogue

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "quarry_requests", "Requests by route and status", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "quarry_request_seconds", "From the request to the end of its answer", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._counted: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.first_token = Histogram(
            "quarry_first_token_seconds", "From the request to its first token",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "quarry_tokens", "Tokens of answers that ended", ["direction"], registry=registry
        )
        self.active = Gauge("quarry_active", "In flight", ["what"], registry=registry)
        batch = Histogram(
            "quarry_search_batch", "Searches in one call of an index", buckets=SIZES,
            registry=registry,
        )  # fmt: skip
        catalogue.sizes = batch.observe
        self._catalogue = catalogue
        self._rows = Gauge(
            "quarry_generator_rows", "Texts that a generator is writing", ["model"],
            registry=registry,
        )  # fmt: skip
        self._steps = Gauge(
            "quarry_generator_steps", "Looks between token steps", ["model"], registry=registry
        )
        self._reopened = Gauge(
            "quarry_index_reopened", "Indexes that were replaced while serving", ["result"],
            registry=registry,
        )  # fmt: skip
        self._rewritten = Gauge(
            "quarry_generator_reopened", "Generators that were replaced while serving", ["result"],
            registry=registry,
        )  # fmt: skip
        self._ahead = Gauge(
            "quarry_prefetch", "What an index that fetches ahead counts",
            ["index", "entry", "what"], registry=registry,
        )  # fmt: skip
        self._entries = Gauge("quarry_entries", "Entries that are open", registry=registry)

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request that was answered."""
        counted = self._counted.get((route, status))
        if counted is None:
            both = self.requests.labels(route, status), self.seconds.labels(route)
            counted = self._counted[route, status] = both
        counted[0].inc()
        counted[1].observe(seconds)

    def render(self) -> Response:
        """The text that Prometheus reads."""
        for model, desk in self._catalogue.desks.items():
            self._rows.labels(model).set(desk.running)
            self._steps.labels(model).set(desk.steps)
        for named, said in self._catalogue.ahead().items():
            for what, n in said.items():
                self._ahead.labels(*named, what).set(n)
        for result, n in self._catalogue.reopened.items():
            self._reopened.labels(result).set(n)
        for result, n in self._catalogue.rewritten.items():
            self._rewritten.labels(result).set(n)
        self._entries.set(len(self._catalogue.entries) - len(self._catalogue.why))
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
