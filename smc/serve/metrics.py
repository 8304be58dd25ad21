"""Metrics for Prometheus, at /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from smc.serve.scheduler import Event, Scheduler, Text

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._schedulers: dict[str, Scheduler] = {}
        self._requests = Counter(
            "smc_requests", "HTTP requests answered", ["path", "status"], registry=self._registry
        )
        self._texts = Counter("smc_texts", "Texts that ended", ["model", "reason"], registry=self._registry)
        self._tokens = Counter(
            "smc_tokens", "Tokens of texts that ended: run, found in the cache, generated", ["model", "kind"],
            registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "smc_first_token_seconds", "From the request to its first token", ["model"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._whole = Histogram(
            "smc_text_seconds", "From the request to its last token", ["model"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def watch(self, model: str, scheduler: Scheduler) -> None:
        """Add the metrics of a scheduler."""
        self._schedulers[model] = scheduler

    def count_request(self, path: str, status: int) -> None:
        """Count a request that was answered. path: the endpoint's, not the one that the client sent."""
        self._requests.labels(path, str(status)).inc()

    def count_text(self, model: str, text: Text, event: Event, now: float) -> None:
        """Count a text that ended."""
        result = text.result
        reason = "failed" if event.error else "cancelled" if not text.generation.done else result.finish_reason
        self._texts.labels(model, reason).inc()
        timings = result.timings
        kinds = {"prompt": timings.prompt_tokens, "cached": timings.cached_tokens, "generated": len(result.tokens)}
        for kind, count in kinds.items():
            self._tokens.labels(model, kind).inc(count)
        if text.first_token:
            self._first.labels(model).observe(text.first_token - text.submitted)
        if reason in ("stop", "length"):
            self._whole.labels(model).observe(now - text.submitted if text.submitted else 0.0)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The current state of the schedulers, for prometheus_client."""
        gauges: dict[str, tuple[str, Any]] = {
            "smc_running_texts": ("Texts in the batch", lambda s: s.running),
            "smc_waiting_texts": ("Texts in the queue", lambda s: s.waiting),
            "smc_kv_cache_bytes": ("Memory of the KV cache in use", lambda s: s.model.engine.info().kv_bytes_used),
        }
        for name, (help_text, value) in gauges.items():
            family = GaugeMetricFamily(name, help_text, labels=["model"])
            for model, scheduler in self._schedulers.items():
                if not scheduler.model.closed:
                    family.add_metric([model], float(value(scheduler)))
            yield family
        counters: dict[str, tuple[str, Any]] = {
            "smc_steps": ("Steps of the engine", lambda s: s.steps),
            "smc_step_tokens": ("Tokens in these steps", lambda s: s.step_tokens),
            "smc_step_seconds": ("Seconds in these steps", lambda s: s.step_seconds),
            "smc_guesses": ("Tokens run on trial", lambda s: s.guesses),
            "smc_right_guesses": ("Those of them that came true", lambda s: s.right_guesses),
        }
        for name, (help_text, value) in counters.items():
            counter = CounterMetricFamily(name, help_text, labels=["model"])
            for model, scheduler in self._schedulers.items():
                counter.add_metric([model], value(scheduler))
            yield counter
