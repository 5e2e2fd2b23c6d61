"""The errors that are the user's to mend."""


class UserError(ValueError):
    """Bad input, told in one clear sentence: what is wrong and what would work."""
