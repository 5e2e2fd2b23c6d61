"""Analysis for researchers: atlases of heads, reports and plots, calibrated TeaCache tables."""
