"""Which documents say the same: word hashes, MinHash signatures, and the clusters they form, out of core."""
