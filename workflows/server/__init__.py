"""Pages on this machine alone: ask a trained run about videos, and annotate videos of your own."""
