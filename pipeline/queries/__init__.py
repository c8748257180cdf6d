"""From annotation files to queries with tokens, a vocabulary and word vectors."""
