"""Custom resources of CloudFormation, which LocalStack's community edition takes for done without running them."""

import json
import uuid
from urllib.parse import urlsplit, urlunsplit

from botocore.config import Config
from localstack import config
from localstack.aws.connect import connect_to
from localstack.services.cloudformation.resource_provider import OperationStatus, ProgressEvent, ResourceProvider

BUCKET = "custom-resource-answers"
PATIENT = Config(read_timeout=920, retries={"max_attempts": 0})  # no function runs longer


class CustomResourceProvider(ResourceProvider):
    """Invokes the function named by ServiceToken and takes its answer at a pre-signed URL, as CloudFormation does.

    A changed physical id is not followed by the deletion of the old one.
    """

    TYPE = "AWS::CloudFormation::CustomResource"
    SCHEMA = {"typeName": TYPE, "primaryIdentifier": ["/properties/PhysicalResourceId"]}

    def create(self, request):
        return self._request("Create", request)

    def update(self, request):
        return self._request("Update", request, OldResourceProperties=as_text(given(request.previous_state)))

    def delete(self, request):
        return self._request("Delete", request)

    def _request(self, request_type: str, request, **more) -> ProgressEvent:
        properties = given(request.desired_state)
        s3 = connect_to(region_name="us-east-1").s3  # where making a bucket that there is already is no error
        key = str(uuid.uuid4())
        event = {
            "RequestType": request_type,
            "RequestId": key,
            "ResponseURL": answer_url(s3, key),
            "StackId": request.stack_id,
            "LogicalResourceId": request.logical_resource_id,
            "ResourceType": request.resource_type,
            "ServiceToken": properties["ServiceToken"],
            "ResourceProperties": as_text(properties),
            **more,
        }
        if physical_id := physical_id_of(request):
            event["PhysicalResourceId"] = physical_id
        # CloudFormation does not wait here. LocalStack loses asynchronous invocations for two seconds after an update.
        connect_to(region_name=request.region_name, config=PATIENT).lambda_.invoke(
            FunctionName=properties["ServiceToken"], Payload=json.dumps(event)
        )
        answer = read_answer(s3, key)
        if answer["Status"] != "SUCCESS":
            return ProgressEvent(OperationStatus.FAILED, request.desired_state, message=answer.get("Reason", ""))
        if request_type == "Delete":
            return ProgressEvent(OperationStatus.SUCCESS, {})
        model = {**properties, **answer.get("Data", {}), "PhysicalResourceId": answer["PhysicalResourceId"]}
        return ProgressEvent(OperationStatus.SUCCESS, model)


def given(state: dict | None) -> dict:
    """The properties in the template: all but what an answer has added."""
    return {name: value for name, value in (state or {}).items() if name != "PhysicalResourceId"}


def physical_id_of(request) -> str | None:
    for state in (request.previous_state, request.desired_state):
        if state and "PhysicalResourceId" in state:
            return state["PhysicalResourceId"]
    return None


def as_text(value):
    """CloudFormation passes every number and boolean on as a string."""
    match value:
        case dict():
            return {name: as_text(inner) for name, inner in value.items()}
        case list():
            return [as_text(inner) for inner in value]
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def answer_url(s3, key: str) -> str:
    s3.create_bucket(Bucket=BUCKET)
    url = s3.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": key}, ExpiresIn=7200)
    # The name of LocalStack's own host resolves only where the public DNS is asked.
    gateway = f"127.0.0.1:{config.GATEWAY_LISTEN[0].port}"
    return urlunsplit(urlsplit(url)._replace(scheme="http", netloc=gateway, path=f"/{BUCKET}/{key}"))


def read_answer(s3, key: str) -> dict:
    try:
        return json.load(s3.get_object(Bucket=BUCKET, Key=key)["Body"])
    except s3.exceptions.NoSuchKey:
        return {"Status": "FAILED", "Reason": "The function ended without an answer at the ResponseURL."}
