"""The care of a folder: what is in it, whether it is whole, repair, and merging of folders."""
