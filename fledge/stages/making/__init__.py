"""How the stages that need torch make their results; loaded only when there is something to make, so a finished run never waits for it."""
