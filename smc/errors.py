"""How the user is told: an exception for wrong input, which is no fault of our code, and a warning for what is not."""


class InputError(Exception):
    """Wrong input, told in one sentence: what is wrong, where, and what would work.

    The command line prints the sentence and exits with status 2, without a traceback.
    Every other exception is a bug of ours and exits with status 1.
    """


class Notice(UserWarning):
    """What the user should know though nothing has to stop, in one sentence; for `warnings.warn`.

    The command line prints it to standard error as "note: …", unless it is told to be quiet.
    """
