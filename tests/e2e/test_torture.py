"""The fault campaign in short; `make torture` is the whole of it."""
import os
import unittest

import torture
from case import Case

STEPS = int(os.environ.get('HOTPLUGGER_RIG_STEPS', 60))


class TortureTest(unittest.TestCase):
    """A few random sequences."""

    def test_a_few_sequences(self):
        self.assertTrue(torture.run(Case.binary, seed=1, steps=STEPS, minutes=5))
