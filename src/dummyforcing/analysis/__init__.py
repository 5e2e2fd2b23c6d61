"""Analysis for researchers: atlases of heads, measured plans, reports and plots, calibrated TeaCache tables."""
