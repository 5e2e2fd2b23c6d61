"""The one exception for input that the user can put right."""


class UserError(ValueError):
    """Bad input: one sentence that says what is wrong and what would work."""
