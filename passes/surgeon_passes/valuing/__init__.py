"""What passes that give weights other values, under a constraint, have in common."""
