"""Folders that outlive a kill: atomic files, a header that says what made a folder, the log of finished records, locks."""
