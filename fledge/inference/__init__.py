"""A checkpoint becomes token ids: sampling, the batched KV-cache engine, and the model class for library users."""
