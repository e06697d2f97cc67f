"""Runs LocalStack until its standard input ends: then whoever started it has ended, however that was."""

import os
import signal
import sys
import threading

from localstack.runtime.main import main


def end_with_parent():
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


threading.Thread(target=end_with_parent, daemon=True).start()
main()
