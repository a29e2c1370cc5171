"""The error for everything a user can get wrong."""


class InputError(ValueError):
    """A value, file or folder from outside that cannot be used.

    The message is one line: what it is, the value it has, and what is allowed. The command line
    prints that line and exits with 2; any other exception is a defect and keeps its traceback.
    """


def invalid(field: str, value: object, allowed: str) -> InputError:
    """Returns the `InputError` for a field whose value is not allowed."""
    return InputError(f"{field}={value!r}: expected {allowed}")
