"""What runs in the child process that trains: TRL, and what it is given."""
