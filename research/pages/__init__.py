"""What makes tables, plots and pages of the result files."""
