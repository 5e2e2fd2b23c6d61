"""The method inside the code of others."""
