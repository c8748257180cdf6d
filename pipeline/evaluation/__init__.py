"""Evaluation of predictions: metrics, intervals, tables, files of predictions, and the query-blind baseline."""
