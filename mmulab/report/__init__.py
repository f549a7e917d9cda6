"""Floor 8: notebooks run with checked parameters, in batches: pages, provenance, results."""
