"""The files of features and frames: shards, the recipe that made them, and the classes that read them."""
