"""Runs each Lambda environment as a process beside LocalStack; its own executor needs Docker for that."""

import json
import os
import threading
import time
from datetime import UTC, datetime

from localstack.services.lambda_.invocation.lambda_models import InvocationResult
from localstack.services.lambda_.invocation.runtime_executor import RuntimeExecutor
from loopless_localstack.node_process import NodeProcess

INIT_SECONDS = 10  # as on AWS


class NodeExecutor(RuntimeExecutor):
    def __init__(self, id, function_version):
        super().__init__(id, function_version)
        self._variables: dict[str, str] = {}
        self._node: NodeProcess | None = None
        self._init: dict | None = None
        self._lock = threading.Lock()
        self._is_invoked = False
        self._is_stopped = False

    def start(self, env_vars):
        self._variables = {
            "PATH": os.environ["PATH"],
            "LANG": "en_US.UTF-8",
            **{name: str(value) for name, value in env_vars.items() if not name.startswith("LOCALSTACK_RUNTIME")},
            "LAMBDA_TASK_ROOT": self._directory,
        }
        self._launch()

    def invoke(self, payload):
        with self._lock:
            if self._is_stopped:
                raise RuntimeError(f"Environment {self.id} was stopped before its invocation.")
            self._is_invoked = True
        try:
            return self._invoke(payload)
        finally:
            with self._lock:
                self._is_invoked = False
                if self._is_stopped:
                    self._node.kill()

    def stop(self):
        """After an update or a removal. An invocation under way goes on to its end with the old code, as on AWS."""
        with self._lock:
            self._is_stopped = True
            if self._node and not self._is_invoked:
                self._node.kill()

    @property
    def _directory(self) -> str:
        return str(self.function_version.config.code.get_unzipped_code_location())

    def _launch(self):
        self._node = NodeProcess(self._variables, self._directory)
        # Whatever comes of it, the next invocation tells.
        self._init = self._node.receive(INIT_SECONDS) or failure(
            "Sandbox.Timedout", f"The init took more than {INIT_SECONDS} seconds."
        )

    def _invoke(self, payload) -> InvocationResult:
        config = self.function_version.config
        request_id = payload["invoke-id"]
        if not self._node.is_usable():
            self._node.kill()
            self._launch()
        began = time.monotonic()
        answer = self._init if "error" in self._init else self._ask(payload, config.timeout)
        if answer is None:
            answer = failure(
                "Sandbox.Timedout",
                f"RequestId: {request_id} Error: Task timed out after {config.timeout}.00 seconds",
            )
        if "error" in answer and answer.get("isFatal", True):
            self._node.kill()
        return InvocationResult(
            request_id,
            json.dumps(answer["error"]).encode() if "error" in answer else answer["result"].encode(),
            is_error="error" in answer,
            logs=self._report(request_id, answer, (time.monotonic() - began) * 1000),
        )

    def _ask(self, payload, seconds: int) -> dict | None:
        self._node.send(
            {
                "requestId": payload["invoke-id"],
                "arn": payload["invoked-function-arn"],
                "traceId": payload["trace-id"],
                "deadlineMs": int((time.time() + seconds) * 1000),
                "event": payload["payload"],
            }
        )
        return self._node.receive(seconds)

    def _report(self, request_id: str, answer: dict, ms: float) -> str:
        config = self.function_version.config
        message = answer.get("error", {}).get("errorMessage", "")
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return "".join(
            [
                f"START RequestId: {request_id} Version: {self.function_version.id.qualifier}\n",
                self._node.take_log(),
                f"{at} {message}\n" if message and answer.get("isFatal", True) else "",
                f"END RequestId: {request_id}\n",
                f"REPORT RequestId: {request_id}\tDuration: {ms:.2f} ms\tMemory Size: {config.memory_size} MB\n",
            ]
        )

    def get_logs(self):
        return self._node.take_log() if self._node else ""

    def get_address(self):
        return "127.0.0.1"

    def get_endpoint_from_executor(self):
        return "127.0.0.1"

    def get_runtime_endpoint(self):
        return ""

    @classmethod
    def prepare_version(cls, function_version):
        runtime = function_version.config.runtime or "an image"
        if not runtime.startswith("nodejs"):
            raise NotImplementedError(f"Expected a function for nodejs, got {runtime}.")
        function_version.config.code.prepare_for_execution()

    @classmethod
    def cleanup_version(cls, function_version):
        pass


def failure(error_type: str, message: str) -> dict:
    """An answer in place of the process's own; it has to be replaced."""
    return {"error": {"errorType": error_type, "errorMessage": message}}
