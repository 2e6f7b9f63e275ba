"""What processes bring, and what they cost."""
