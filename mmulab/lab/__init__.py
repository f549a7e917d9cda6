"""Floor 7: experiments: notebooks run with checked parameters, pages, provenance, results."""
