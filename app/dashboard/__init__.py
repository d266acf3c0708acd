"""The dashboard: pages for officers, engineers, auditors and admins, rendered here; one file per page."""
