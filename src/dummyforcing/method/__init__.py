"""Dummy Forcing itself: score heads, give them roles within a policy, write a plan. Knows no model."""
