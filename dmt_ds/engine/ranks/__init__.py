"""What the processes of a run know of each other and of their devices."""
