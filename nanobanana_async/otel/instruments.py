"""What is counted and measured."""

from opentelemetry import metrics

from nanobanana_async.otel.names import (
    CREATES,
    CREDITS,
    DELAY_BUCKETS,
    JOB_BUCKETS,
    JOB_DURATION,
    JOBS_ENDED,
    OPERATION_BUCKETS,
    OPERATION_DURATION,
    QUERIES,
    QUERY_DELAY,
    REFUSALS,
    SLOTS_HELD,
    SLOTS_LIMIT,
)


class Instruments:
    """The metrics; the same ones for every session."""

    def __init__(self, meter: metrics.Meter) -> None:
        histogram, counter = meter.create_histogram, meter.create_counter
        self.operation_s = histogram(
            OPERATION_DURATION,
            "s",
            "From when a job was asked for until it ended.",
            explicit_bucket_boundaries_advisory=OPERATION_BUCKETS,
        )
        self.job_s = histogram(
            JOB_DURATION,
            "s",
            "From when the gateway took a job until its end was seen.",
            explicit_bucket_boundaries_advisory=JOB_BUCKETS,
        )
        self.delay_s = histogram(
            QUERY_DELAY,
            "s",
            "From when a job ended, by the gateway's clock, until that was seen.",
            explicit_bucket_boundaries_advisory=DELAY_BUCKETS,
        )
        self.ended = counter(JOBS_ENDED, "{job}", "Jobs that ended, or are in doubt, by state.")
        self.creates = counter(CREATES, "{request}", "Creates, by what they brought.")
        self.refusals = counter(REFUSALS, "{request}", "Creates that were refused for want of a slot, or for the rate.")
        self.queries = counter(QUERIES, "{request}", "Queries about jobs.")
        self.credits = counter(CREDITS, "{credit}", "What jobs cost after refunds, counted when they end.")
        self.held = meter.create_up_down_counter(SLOTS_HELD, "{slot}", "Job slots that are taken, as far as is known.")
        self.limit = meter.create_gauge(SLOTS_LIMIT, "{slot}", "The learned limit of job slots.")
