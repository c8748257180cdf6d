"""What predictions are worth: metrics, intervals, tables, predictions in files, and models that do not see the query."""
