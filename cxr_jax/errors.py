"""The one exception that means: the user can mend this."""


class InputError(Exception):
    """A mistake in what the user gave: a file, a value, a flag.

    The message is one line that names the file or field, the value found, the rule it breaks and
    the way out. Commands print it without a stack trace and exit with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
