"""Everything that runs without torch: HTTP in, PostgreSQL out."""
