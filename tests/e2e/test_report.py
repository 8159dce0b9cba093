"""The report itself.  No host VM in it."""
import contextlib
import io
import unittest

from report import Report


class ReportTest(unittest.TestCase):
    """What is printed of tests that go wrong."""

    def report(self, *outcomes):
        """The text and the exit status for a test whose runs end so: None, or how its VM died."""
        runs = iter(outcomes)

        class Scenario(unittest.TestCase):
            """One that fails, or whose host VM dies."""

            died = ''

            def test(self):
                self.died = next(runs)
                if self.died is not None:
                    raise OSError('Broken pipe')

        report, text = Report(verbose=False), io.StringIO()
        with contextlib.redirect_stdout(text):
            Scenario('test').run(report)
            status = report.sum_up()
        self.assertEqual(list(runs), [])
        return text.getvalue(), status

    def test_what_failed_is_told_again_at_the_end(self):
        text, status = self.report('')
        self.assertEqual(status, 1)
        self.assertEqual(text.count('OSError: Broken pipe'), 2)
        self.assertTrue(text.endswith('e2e: 0 passed, 1 failed, 0 skipped\n'))

    def test_a_host_that_died_is_no_verdict(self):
        text, status = self.report('QEMU was ended by SIGABRT', None)
        self.assertEqual(status, 0)
        self.assertIn('QEMU was ended by SIGABRT', text)
        self.assertIn('run twice, for its host VM or guest had died', text)
        self.assertTrue(text.endswith('e2e: 1 passed, 0 failed, 0 skipped\n'))

    def test_one_that_dies_again_is(self):
        text, status = self.report('QEMU was ended by SIGABRT', 'QEMU exited with 0')
        self.assertEqual(status, 1)
        self.assertIn('QEMU exited with 0', text)
        self.assertTrue(text.endswith('e2e: 0 passed, 1 failed, 0 skipped\n'))

    def test_after_a_host_that_died_a_failure_is_a_failure(self):
        _, status = self.report('QEMU was ended by SIGABRT', '')
        self.assertEqual(status, 1)
