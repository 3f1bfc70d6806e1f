"""What the passes that train share."""
