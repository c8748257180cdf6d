"""The work of a stage on its videos: what is pending, reading videos safely, threads or workers, progress, interrupts."""
