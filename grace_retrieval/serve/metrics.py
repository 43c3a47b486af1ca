"""Metrics: what Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from grace_retrieval.pipeline import RationalePipeline
    from grace_retrieval.serve.admission import Admission

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        admission: Whose queue is shown.
        pipeline: Whose cache is shown.
    """

    def __init__(self, admission: Admission, pipeline: RationalePipeline) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "grace_requests", "Requests that were answered.", ("route", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "grace_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.texts = Counter("grace_texts", "Texts that were embedded.", ("role",), registry=self.registry)
        self.tokens = Counter(
            "grace_tokens",
            "Tokens of embedded texts, and of the rationales that were written for them now.",
            ("of",),
            registry=self.registry,
        )
        self.batch_texts = Histogram(
            "grace_batch_texts", "Texts in a call of the model.", buckets=_TEXTS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "grace_batch_seconds", "Seconds of a call of the model.", buckets=_SECONDS, registry=self.registry
        )
        queue = Gauge("grace_queue_requests", "Requests that are read, wait or run.", registry=self.registry)
        queue.set_function(lambda: admission.requests)
        held = Gauge("grace_queue_bytes", "Bytes of their bodies.", registry=self.registry)
        held.set_function(lambda: admission.bytes)
        self.registry.register(_CacheCounts(pipeline))

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


class _CacheCounts(Collector):
    """The pipeline's own counts, read when they are asked for."""

    def __init__(self, pipeline: RationalePipeline) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Rationales that were found in the cache, and that were not."""
        counts = self._pipeline.counts
        yield CounterMetricFamily("grace_cache_hits", "Texts that were found in the cache.", value=counts["found"])
        yield CounterMetricFamily("grace_cache_misses", "Texts that the model was run for.", value=counts["generated"])
