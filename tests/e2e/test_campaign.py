"""The fault campaign in short; `make campaign` is the whole of it."""
import os
import unittest

import run_campaign
from case import Case

STEPS = int(os.environ.get('HOTPLUGGER_TEST_STEPS', 60))


class CampaignTest(unittest.TestCase):
    """A few random sequences."""

    def test_a_few_sequences(self):
        self.assertTrue(run_campaign.run(Case.binary, seed=1, steps=STEPS, minutes=5))
