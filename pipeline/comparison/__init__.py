"""Two sets of features against each other: which ids match, how alike the rows are, and a verdict a video."""
