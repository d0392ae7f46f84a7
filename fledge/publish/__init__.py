"""Results leave for other programs and the hub, and come back; each is compared with what it was made from before it appears."""
