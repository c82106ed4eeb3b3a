"""Signals as a terminal has them: under nohup SIGHUP is ignored, and child processes would inherit that."""

import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)
