"""What happens to a document on its own: cleaning, quality rules, language, contamination."""
