"""Decisions as values made from values: no await, no clock, no socket; `now` is an argument."""
