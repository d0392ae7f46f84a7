"""Text becomes integers: a tokenizer is trained, and documents, conversations and preferences are packed into token shards."""
