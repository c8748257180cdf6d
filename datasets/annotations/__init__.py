"""Annotation files in every format of the field as moments, and what is wrong with them."""
