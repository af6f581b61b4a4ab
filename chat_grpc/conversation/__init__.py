"""What happens to a message, free of any transport."""
