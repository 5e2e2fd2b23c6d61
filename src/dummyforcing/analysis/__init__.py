"""Analysis for researchers: atlases of heads, measured plans, reports, plots, calibrated TeaCache tables."""
