"""Progress for people: one live view on a terminal or in a notebook, and plain lines in the log elsewhere."""
