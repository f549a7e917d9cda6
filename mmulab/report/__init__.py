"""Floor 7: notebooks run with checked parameters, in batches: pages, provenance, results."""
