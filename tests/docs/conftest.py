"""What the pages show is a user's own project: it is run by a test, and not collected here."""

collect_ignore = ["dags", "project"]
