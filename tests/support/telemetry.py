"""Helpers of the telemetry tests: the SDK with in-memory exporters, and plain views of the exported data."""

import json
from collections.abc import Awaitable, Mapping
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from nanobanana_async import NanoBananaError
from nanobanana_async.otel import Telemetry


class TelemetryCollector:
    """A `Telemetry` with an SDK that keeps the exported data."""

    def __init__(self, *, record_prompts: bool = False) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self._tracers = TracerProvider(shutdown_on_exit=False)
        self._tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(self._tracers, meters, record_prompts=record_prompts)

    @property
    def tracer(self) -> Tracer:
        """Tracer for the spans of an application."""
        return self._tracers.get_tracer("app")

    @property
    def all_spans(self) -> list[ReadableSpan]:
        """All ended spans, with those of the application."""
        return list(self._exporter.get_finished_spans())

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans of jobs that have ended."""
        return [span for span in self.all_spans if span.name.startswith("generate_content")]

    @property
    def span(self) -> ReadableSpan:
        """The only span of a job that has ended."""
        (span,) = self.spans
        return span

    def metrics(self) -> dict[str, Metric]:
        """All metrics so far, by name."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def value(self, name: str, attributes: Mapping[str, str] | None = None) -> float:
        """Sum the points of a metric that have these attributes; 0 without any."""
        metric, wanted = self.metrics().get(name), attributes or {}
        points = [] if metric is None else metric.data.data_points
        matching = [point for point in points if wanted.items() <= dict(point.attributes or {}).items()]
        return sum(point.value for point in matching if isinstance(point, NumberDataPoint))

    def measured(self, name: str) -> list[HistogramDataPoint]:
        """The points of a histogram."""
        metric = self.metrics().get(name)
        points = [] if metric is None else metric.data.data_points
        return [point for point in points if isinstance(point, HistogramDataPoint)]

    def exported_text(self) -> str:
        """Return everything that was exported, as text."""
        spans = [span.to_json() for span in self.all_spans]
        return "\n".join([*spans, *(metric.to_json() for metric in self.metrics().values())])


async def outcome(work: Awaitable[Any]) -> Any:
    """Return the result, or the library's error that was raised."""
    try:
        return await work
    except NanoBananaError as error:
        return error


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def event_names(span: ReadableSpan) -> list[str]:
    """Return the names of a span's events, in order, without the prefix."""
    return [event.name.removeprefix("nanobanana.") for event in span.events]


def events_named(span: ReadableSpan, name: str) -> list[Mapping[str, Any]]:
    """Return the attributes of the events with this name."""
    return [dict(event.attributes or {}) for event in span.events if event.name == f"nanobanana.{name}"]


def messages(span: ReadableSpan) -> Any:
    return json.loads(facts(span)["gen_ai.input.messages"])
