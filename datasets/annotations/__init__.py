"""Annotation files in every format of the field as moments, and their flaws."""
