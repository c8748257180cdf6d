"""Annotations: from their files to queries with tokens, a vocabulary and word vectors."""
