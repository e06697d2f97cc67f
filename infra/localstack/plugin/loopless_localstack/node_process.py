"""A Node process that holds a loaded function and answers one request at a time (runtime.mjs)."""

import json
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path

RUNTIME = Path(__file__).with_name("runtime.mjs")
# Begins a line that is an answer. All other lines are the function's log, so both stay in order.
MARK = "\0"


class NodeProcess:
    def __init__(self, variables: dict[str, str], directory: str):
        self._answers: queue.Queue[dict] = queue.Queue()
        self._log: list[str] = []
        self._process = subprocess.Popen(
            [os.environ.get("LOOPLESS_NODE", "node"), str(RUNTIME)],
            env=variables,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # what it starts ends with it
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            text, mark, answer = line.partition(MARK)
            if text:
                self._log.append(text if text.endswith("\n") else text + "\n")
            if mark:
                self._answers.put(json.loads(answer))
        code = self._process.wait()
        how = f"exit status {code}" if code >= 0 else f"signal: {signal.Signals(-code).name}"
        self._answers.put(
            {"error": {"errorType": "Runtime.ExitError", "errorMessage": f"Runtime exited with error: {how}"}}
        )

    def send(self, request: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has just ended: its last answer says how

    def receive(self, seconds: float) -> dict | None:
        """The next answer; None when there is none in time."""
        try:
            return self._answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None

    def is_usable(self) -> bool:
        """Alive, and it has said nothing since its last answer: no late error ended it."""
        return self._process.poll() is None and self._answers.empty()

    def take_log(self) -> str:
        """What the function has written since the last call."""
        count = len(self._log)
        text = "".join(self._log[:count])
        del self._log[:count]
        return text

    def kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
