"""Named benchmarks and one's own: rows of a file become questions, a model's likelihoods become scores with intervals and baselines."""
