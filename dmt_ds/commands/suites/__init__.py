"""`dmt-ds suite`: plan, check, start and record many runs."""
