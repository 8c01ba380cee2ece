"""OpenTelemetry: a span for each job, and metrics. Needs the extra `otel`; without an SDK nothing is recorded."""

try:
    from nanobanana_async.otel.telemetry import Telemetry
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ImportError("telemetry needs OpenTelemetry's API: pip install 'nanobanana-async[otel]'") from None

__all__ = ["Telemetry"]
