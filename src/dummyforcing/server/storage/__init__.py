"""What lies on the disk: the database of jobs, videos, and uploads that are decoded with care."""
