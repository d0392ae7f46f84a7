"""Documents in, documents out: sources become shards of documents, conversations and preference pairs with a fixed split."""
