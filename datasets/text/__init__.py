"""Queries as tokens, the vocabulary, and GloVe's files."""
