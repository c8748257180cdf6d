"""`excl run`: recipes, the plan of the steps, their folders, the report, and a check before anything runs."""
