"""What a run leaves to resume from, and who may write it."""
