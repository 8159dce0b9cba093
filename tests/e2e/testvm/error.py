"""The one exception of the test VM: what went wrong, in words for a person."""


class VmError(Exception):
    """The test VM could not do what it was asked to; a failed test is never one."""
