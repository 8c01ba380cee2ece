"""The benchmark: `python -m benchmarks` shows what the session costs and wins, beside the released peers."""
