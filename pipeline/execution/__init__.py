"""How a stage works through its videos: what is pending, reading videos safely, threads or workers, progress, interrupts."""
