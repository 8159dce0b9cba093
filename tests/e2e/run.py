#!/usr/bin/env python3
"""Runs the end-to-end tests: each test_*.py beside this file.  See README.md."""
import argparse
import os
import signal
import sys
import time
import unittest

import product
import rig
from case import Case

_HERE = os.path.dirname(os.path.abspath(__file__))
# Of each reason for a failure, in the summary.
_REASON_LINES = 15


class Report(unittest.TestResult):
    """Prints a line for each test as it ends, and under a failed one all that is known."""

    def __init__(self, verbose):
        super().__init__()
        self.counts = {'passed': 0, 'failed': 0, 'skipped': 0}
        self._verbose = verbose
        self._failed = []
        self._reset()

    def _reset(self):
        self._start, self._outcome, self._texts = time.monotonic(), None, []
        self._reasons = []

    def startTest(self, test):
        super().startTest(test)
        self._reset()

    def addSuccess(self, test):
        super().addSuccess(test)
        self._outcome = 'passed'

    def addError(self, test, err):
        super().addError(test, err)
        self._fail(self.errors[-1][1])
        if not isinstance(test, unittest.TestCase):      # setUpClass: no stopTest will come
            self._print(test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._fail(self.failures[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self._fail(f'{subtest}\n{self._exc_info_to_string(err, test)}')

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._outcome = 'skipped'
        self._texts.append(reason)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self._outcome = 'passed'

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._fail('the test passed, but is marked as an expected failure')

    def stopTest(self, test):
        super().stopTest(test)
        if self._outcome:               # none yet: interrupted
            self._print(test)

    def _fail(self, text):
        self._outcome = 'failed'
        self._texts.append(text)
        self._reasons.append(text)

    def _print(self, test):
        self.counts[self._outcome] += 1
        seconds = time.monotonic() - self._start
        print(f'{self._outcome:7} {seconds:6.1f} s  {test.id()}', flush=True)
        journal = getattr(test, 'evidence', '')
        if journal and (self._verbose or self._outcome == 'failed'):
            self._texts.append(f"the host's journal:\n{journal}")
        for text in self._texts:
            print('    ' + text.rstrip().replace('\n', '\n    '), flush=True)
        if self._outcome == 'failed':
            self._failed.append((test.id(), self._reasons))
        self._reset()

    def sum_up(self):
        """What failed once more, last: of a long log often only the end is kept."""
        for name, reasons in self._failed:
            print(f'failed: {name}')
            for reason in reasons:
                print('    ' + '\n    '.join(reason.rstrip().splitlines()[-_REASON_LINES:]))
        counts = self.counts
        print(f'e2e: {counts["passed"]} passed, {counts["failed"]} failed, '
              f'{counts["skipped"]} skipped')
        return 1 if counts['failed'] else 0


def _tests(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _tests(item)
        else:
            yield item


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--binary', default=product.BINARY, help='the hotplugger to test')
    parser.add_argument('-k', metavar='PATTERN', help='only the tests whose name contains it')
    parser.add_argument('--list', action='store_true', help='print the names of the tests')
    parser.add_argument('-v', action='store_true', help='print the journal of passed tests too')
    parser.add_argument('--install', action='store_true',
                        help='apt-get install what the rig needs and this machine has not')
    args = parser.parse_args()

    loader = unittest.TestLoader()
    if args.k:
        loader.testNamePatterns = [f'*{args.k}*']
    suite = loader.discover(_HERE)
    tests = list(_tests(suite))
    if args.list:
        print('\n'.join(test.id() for test in tests))
        return 0
    Case.binary = os.path.abspath(args.binary)
    # before the first test, not within it
    rig.build(*sorted({test.guest_kind for test in tests if isinstance(test, Case)}),
              install=args.install)
    report = Report(args.v)
    suite.run(report)
    return report.sum_up()


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)     # cleans up, as on Ctrl-C
    try:
        sys.exit(main())
    except rig.RigError as error:
        sys.exit(f'e2e: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
