"""Reading videos: the frames that are on screen at given times, from any of three decoders, by the clock of the file."""
