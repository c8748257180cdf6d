"""Which recipe made these features? From row counts and durations alone, and from the videos with the weights."""
