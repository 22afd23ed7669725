"""What is kept on disk: artifacts, pairs, record tables, logs, and where each result comes from."""
