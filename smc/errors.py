"""The one exception that means: the user's input is wrong, not our code."""


class InputError(Exception):
    """Wrong input, told in one sentence: what is wrong, where, and what would work.

    The command line prints the sentence and exits with status 2, without a traceback.
    Every other exception is a bug of ours and exits with status 1.
    """
