"""Analysis for researchers: atlases of heads, plans by measurement, reports and plots, calibrated TeaCache tables."""
