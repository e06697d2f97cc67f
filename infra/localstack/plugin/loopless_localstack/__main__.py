"""Runs LocalStack until its standard input ends: then whoever started it has ended, however that was."""

import os
import threading

from localstack.runtime.main import main


def end_with_parent():
    while os.read(0, 1024):  # not sys.stdin: its lock would be taken when Python ends
        pass
    os._exit(1)  # in order takes a log that somebody reads; functions end with their own input


threading.Thread(target=end_with_parent, daemon=True).start()
main()
