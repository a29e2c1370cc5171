"""What is mixed, how much of it, and what that does to targets and loss."""
