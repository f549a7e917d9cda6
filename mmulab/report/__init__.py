"""Floor 9: notebooks run with checked parameters, in batches: pages, provenance, results."""
