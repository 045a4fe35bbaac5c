"""The one exception for what a user can put right."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The text is one line that says what is wrong, where, and what to do. Command lines print it and exit with 1.
    """
