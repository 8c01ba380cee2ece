"""Run any number of requests through one session."""
