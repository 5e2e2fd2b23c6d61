"""What users cause and can mend."""


class UserError(ValueError):
    """Bad input; the message is one sentence that says what is wrong and what would work."""


class TrainedLengthWarning(UserWarning):
    """The video is longer than those that the model was trained for."""


class UnknownWordsWarning(UserWarning):
    """The prompt has words that the model was never taught."""
