"""`dmt-ds predict`: answers to a person's own images."""
