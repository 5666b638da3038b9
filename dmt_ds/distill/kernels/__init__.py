"""Both losses and their gradient at once, by hand-derived formulas; each file is one way of computing the same."""
