"""Files that appear whole or not at all, and dataclasses read from and written to text."""
