"""How long an artefact takes to answer, pruned and unpruned in turn, and proof that it drops tokens. Needs no torch."""
