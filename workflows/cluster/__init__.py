"""Workers of Dask, on this machine or in the jobs of a batch system, and how shards are given to them."""
