"""What users cause and can mend."""


class UserError(ValueError):
    """Bad input; the message is one sentence that says what is wrong and what would work."""


class ModelWarning(UserWarning):
    """What was asked for is beyond what the model was made for; the result may be poor."""


class UnknownWordsWarning(ModelWarning):
    """The prompt has words that the model was never taught."""


class LongVideoWarning(ModelWarning):
    """The video is longer than any that the model was trained for."""
