"""Many requests, any number of them, through one session."""
