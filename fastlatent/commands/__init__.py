"""What stands behind the words that a user types."""
