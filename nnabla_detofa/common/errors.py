"""The exception for errors that the user can fix."""


class UserError(ValueError):
    """Invalid input: a config value, a data file, a weights file, an argument.

    The message is one sentence that names the input, its value and the allowed values. The command line prints it unchanged
    and exits with status 2. Any other uncaught exception is a bug of this package.
    """
