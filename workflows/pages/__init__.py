"""Pages to look at: a video with its timeline, and what is built of it."""
