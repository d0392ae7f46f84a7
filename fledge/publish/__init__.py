"""A checkpoint in the form of other programs, and theirs in ours; each is compared with the model it was made from before it appears."""
