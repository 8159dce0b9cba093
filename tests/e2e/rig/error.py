"""The one exception of the rig: what went wrong, in words for a person."""


class RigError(Exception):
    """The rig could not do what it was asked to; a failed test is never one."""
