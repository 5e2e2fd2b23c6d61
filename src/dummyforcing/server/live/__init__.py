"""Live sessions: videos that are watched, steered and branched while they are made."""
