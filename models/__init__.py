"""The networks: I3D, which turns frames into features, and ExCL, which finds a query's moment among them."""

if __name__ != "excl.models":
    raise ImportError(f"import this package as excl.models, not as {__name__}: the bare name belongs to others")
