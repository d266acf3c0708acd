"""Everything behind the queue; importing this package imports nothing else."""
