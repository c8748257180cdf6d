"""The inputs of the stages: annotations in every format of the field, text, word vectors, and videos sampled in time."""

if __name__ != "excl.datasets":
    raise ImportError(f"import this package as excl.datasets, not as {__name__}: the bare name belongs to another")
