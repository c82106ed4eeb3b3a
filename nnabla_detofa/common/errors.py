"""The one error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: a config entry, a data file, weights, an argument.

    Its message is one sentence that names the thing, the value and what is allowed; the command line prints it as it
    is and exits with status 2. Everything else that escapes is a defect of this package.
    """
