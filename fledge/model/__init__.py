"""One Llama: token ids in, logits or loss out, and its home on disk as a Hugging Face folder. Knows nothing of training."""
