"""The five stages and the feature store: each stage is a command, a function, and one folder with a manifest."""

if __name__ != "excl.pipeline":
    raise ImportError(f"import this package as excl.pipeline, not as {__name__}: the bare name belongs to others")
