"""PostgreSQL: tables, sessions, and one file per noun that reads and writes it."""
