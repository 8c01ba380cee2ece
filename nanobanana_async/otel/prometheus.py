"""The metrics of sessions in the text format that Prometheus reads, by OpenTelemetry's exporter."""

try:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
except ModuleNotFoundError:
    raise ImportError("metrics need OpenTelemetry's exporter: pip install 'nanobanana-async[serve]'") from None

from nanobanana_async.otel.telemetry import Telemetry

CONTENT_TYPE = CONTENT_TYPE_LATEST


class PrometheusMetrics:
    """Metrics of sessions for an endpoint `/metrics`: `Session(observers=[metrics.telemetry])`, then `metrics.text()`.

    The names are those of OpenTelemetry with `_` for `.`, and units as suffixes. The registry is its own: what else
    the process exports is not shown.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        self.telemetry = Telemetry(meter_provider=MeterProvider(metric_readers=[reader]))
        """The observer that records them."""

    def text(self) -> bytes:
        """Return all metrics; their media type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)
