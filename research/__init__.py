"""What proves claims and trains the bundled models; not part of the wheel."""
