"""What every test runs under."""

import signal

# A shell that runs the tests in the background lets them ignore Ctrl-C; the programs that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
