"""The board: what run folders hold, as JSON for the Runs page; and runs started from there."""
