"""Jobs: videos that are made in the time that live ones leave."""
