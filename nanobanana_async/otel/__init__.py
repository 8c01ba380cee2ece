"""OpenTelemetry: a span for each job, and metrics. Needs the extra `otel`; without an SDK nothing is recorded."""

from nanobanana_async.otel.telemetry import Telemetry

__all__ = ["Telemetry"]
