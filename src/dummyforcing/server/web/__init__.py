"""What any service on the web needs: who gets in, limits, logs, metrics, and errors of one shape."""
