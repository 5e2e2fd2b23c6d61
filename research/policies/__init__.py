"""Policies of other papers, as files that `generate --policy FILE.py:NAME` takes."""
