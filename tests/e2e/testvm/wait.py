"""Waits for something to become true, the way every test here must: with a limit."""
import time

from .error import VmError


def wait_for(condition, timeout=60, what='a condition', every=0.1):
    """condition()'s first true value; raises after timeout seconds.

    Under TCG on a busy machine everything can take ten times longer: set no limit below 30 s.
    """
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise VmError(f'waited {timeout} s in vain for {what}')
        time.sleep(every)
