"""The `excl` command, recipes, and what strings the stages together for a data set."""

if __name__ != "excl.workflows":
    raise ImportError(f"import this package as excl.workflows, not as {__name__}: the bare name belongs to others")
