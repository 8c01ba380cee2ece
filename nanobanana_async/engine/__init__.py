"""The session's engine: one owner, one heap of due times, one timer; coroutines only for requests on the wire."""
