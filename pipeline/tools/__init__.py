"""Small commands for what the stages need: weights, word vectors, a look at a video or at the classes that I3D sees."""
