"""argilla-server with nothing but its own SQLite database. This runs in the server's environment, seeing nothing of ours."""
