"""What a run of the tests prints."""
import re
import time
import unittest

# Of each text in the summary, besides where the test was.
_LAST_LINES = 8
_IN_TEST = re.compile(r'File ".*/test_\w+\.py", line')


class Report(unittest.TestResult):
    """Prints a line for each test as it ends, and under a failed one all that is known.

    A failed test whose host VM died (Host.died), or whose guest crashed or stood still, is run
    once more: an emulator that crashes has not shown what hotplugger does.  It is said, with all
    that is known of it; the second time counts, whatever ends it.
    """

    def __init__(self, verbose):
        super().__init__()
        self.counts = {'passed': 0, 'failed': 0, 'skipped': 0}
        self._verbose = verbose
        self._failed = []
        self._died = {}
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
        if not self._outcome:           # none yet: interrupted
            return
        died = self._outcome == 'failed' and getattr(test, 'died', '')
        if died and test.id() not in self._died:
            self._died[test.id()] = died
            print(f'again            {test.id()}: {_indented(died)}', flush=True)
            type(test)(test._testMethodName).run(self)
            return
        if died:
            self._fail(died)
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
            print('    ' + _indented(text), flush=True)
        if self._outcome == 'failed':
            self._failed.append((test.id(), self._reasons))
        self._reset()

    def sum_up(self):
        """What failed once more, last: of a long log often only the end is kept."""
        for name, reasons in self._failed:
            print(f'failed: {name}')
            for reason in reasons:
                print('    ' + _ends(reason))
        for name, died in self._died.items():
            print(f'run twice, for its host VM or guest had died: {name}\n    {_ends(died)}')
        print(f'e2e: {self.line()}')
        return 1 if self.counts['failed'] else 0

    def line(self):
        """How many tests ended how."""
        counts = self.counts
        return (f'{counts["passed"]} passed, {counts["failed"]} failed, '
                f'{counts["skipped"]} skipped')


def _ends(text):
    lines = text.rstrip().splitlines()
    where = [line for line in lines[:-_LAST_LINES] if _IN_TEST.search(line)]
    return _indented('\n'.join(where + lines[-_LAST_LINES:]))


def _indented(text):
    return text.rstrip().replace('\n', '\n    ')
