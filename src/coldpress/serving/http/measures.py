"""What a server counts and times, in the format of Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from coldpress.serving.catalog import Catalog

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Measures:
    """Counters of one server; ``page`` is what GET /metrics answers."""

    def __init__(self, catalog: Catalog):
        here = self._registry = CollectorRegistry()
        self.requests = Counter("coldpress_requests", "Requests.", ["path", "status"], registry=here)
        self.prompt_tokens = Counter("coldpress_prompt_tokens", "Tokens of prompts.", ["model"], registry=here)
        self.generated_tokens = Counter("coldpress_generated_tokens", "Tokens generated.", ["model"], registry=here)
        self.first_token = Histogram(
            "coldpress_first_token_seconds", "To the first token.", ["model"], buckets=_SECONDS, registry=here
        )
        running = Gauge("coldpress_answers_running", "Answers in the making.", ["model"], registry=here)
        waiting = Gauge("coldpress_answers_waiting", "Answers in line.", ["model"], registry=here)
        for name, model in catalog.chat_models.items():
            running.labels(name).set_function(partial(getattr, model.scheduler, "running"))
            waiting.labels(name).set_function(partial(getattr, model.scheduler, "waiting"))

    def page(self) -> bytes:
        found: bytes = generate_latest(self._registry)
        return found
