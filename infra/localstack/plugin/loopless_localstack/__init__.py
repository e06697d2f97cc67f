"""Plugins for LocalStack: Lambda functions as Node processes, and custom resources in CloudFormation."""

from localstack.services.cloudformation.resource_provider import CloudFormationResourceProviderPlugin
from localstack.services.lambda_.invocation.plugins import RuntimeExecutorPlugin


class NodeExecutorPlugin(RuntimeExecutorPlugin):
    """Used with LAMBDA_RUNTIME_EXECUTOR=node. A name that is not found silently means Docker."""

    name = "node"

    def load(self, *args, **kwargs):
        from loopless_localstack.node_executor import NodeExecutor

        return NodeExecutor


class CustomResourcePlugin(CloudFormationResourceProviderPlugin):
    name = "AWS::CloudFormation::CustomResource"

    def __init__(self):
        self.factory = None

    def load(self, *args, **kwargs):
        from loopless_localstack.custom_resource import CustomResourceProvider

        self.factory = CustomResourceProvider
