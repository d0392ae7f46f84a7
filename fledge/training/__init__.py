"""Batches become a checkpoint: one Trainer, two objectives, a data order that is a pure function, and nothing lost on the way."""
