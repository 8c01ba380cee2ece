"""Everything that happens to the jobs of a session: claims, creates, polls, callbacks; one scheduler with one timer."""
