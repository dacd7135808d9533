"""Prometheus metrics under vLLM's suffixes and bucket edges: its dashboards work after one substitution."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kogpt.engine import Engine
from kogpt.server.worker import Worker

FIRST_TOKEN: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5)
FIRST_TOKEN += (7.5, 10, 20, 40, 80)
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10, 20, 40, 80)
WHOLE: tuple[float, ...] = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
WHOLE += (120.0, 240.0, 480.0)


class Metrics:
    """What a server counts. Labels never hold what a user sent."""

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        engine = worker.session.engine
        self._gauge("num_requests_running", "answers being written or read", lambda: engine.n_rows)
        self._gauge("num_requests_waiting", "requests in the queue", lambda: engine.n_waiting)
        self.registry.register(_EngineCounters(engine))
        self.prompt_tokens = self._counter("prompt_tokens", "tokens of prompts")
        self.generation_tokens = self._counter("generation_tokens", "tokens written")
        self.first_token = self._histogram("time_to_first_token_seconds", "to the first token", FIRST_TOKEN)
        self.between = self._histogram("inter_token_latency_seconds", "between tokens", BETWEEN)
        self.whole = self._histogram("e2e_request_latency_seconds", "of whole requests", WHOLE)
        self.success = Counter(
            "kogpt:request_success", "answers by how they ended", ["finished_reason"], registry=self.registry
        )

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"kogpt:{name}", text, registry=self.registry).set_function(value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"kogpt:{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, edges: Sequence[float]) -> Times:
        times = Times(f"kogpt:{name}", text, edges)
        self.registry.register(times)
        return times


class Times(Collector):
    """A histogram that one thread fills: with prometheus_client's own, a token cost three locks."""

    def __init__(self, name: str, text: str, edges: Sequence[float]) -> None:
        """edges: the upper ends of the buckets, in seconds."""
        self._name, self._text, self._edges = name, text, edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a time."""
        self._counts[bisect_left(self._edges, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        """The histogram as it stands; Prometheus wants cumulative counts."""
        ends = [*map(floatToGoString, self._edges), "+Inf"]
        buckets = list(zip(ends, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class _EngineCounters(Collector):
    """What the engine counts itself, as Prometheus counters."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The counters as they stand."""
        counters = self._engine.counters
        yield CounterMetricFamily("kogpt:prefix_cache_queries", "prompt tokens", value=counters.prompt)
        saved = "prompt tokens that the prefix cache saved"
        yield CounterMetricFamily("kogpt:prefix_cache_hits", saved, value=counters.reused)


class Stopwatch:
    """Times one request for the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._last: float | None = None

    def tokens(self, n: int) -> None:
        """n tokens have come."""
        if not n:
            return
        now = time.perf_counter()
        if self._last is None:
            self._metrics.first_token.observe(now - self._began)
        else:
            self._metrics.between.observe((now - self._last) / n)
        self._last = now
        self._metrics.generation_tokens.inc(n)

    def finish(self, reason: str) -> None:
        """An answer has ended."""
        self._metrics.success.labels(finished_reason=reason).inc()
        self._metrics.whole.observe(time.perf_counter() - self._began)
