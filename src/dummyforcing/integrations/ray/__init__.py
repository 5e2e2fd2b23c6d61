"""Many videos on many machines, by Ray (extra `ray`), which is imported when a cluster is asked for."""
