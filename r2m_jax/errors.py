"""The one exception a user's mistake raises."""


class InputError(ValueError):
    """What the user gave is wrong: the message is one sentence that names it and says what to do.

    The command line prints the message alone and exits with code 2; any other exception is a bug of ours.
    """


class Stuck(InputError):
    """Something the input is read from does not answer, and the thread that waits for it never ends.

    The command line ends the process without waiting for threads.
    """
