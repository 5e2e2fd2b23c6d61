"""What users cause and can mend."""


class UserError(ValueError):
    """Bad input; the message is one sentence that says what is wrong and what would work."""


class UnknownWordsWarning(UserWarning):
    """The prompt has words that the model was never taught."""
