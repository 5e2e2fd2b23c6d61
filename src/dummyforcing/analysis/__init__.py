"""What a researcher looks at: atlases of heads, reports and plots, calibrated TeaCache tables."""
