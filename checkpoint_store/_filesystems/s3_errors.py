"""What S3 and botocore raise, in the words of this package and with a remedy."""

from __future__ import annotations

from collections.abc import Mapping

CONFLICT = "ConditionalRequestConflict"

_REMEDIES = {
    "NoSuchBucket": "create the bucket, or correct the URL or endpoint_url",
    "NoSuchAccessPoint": "create the access point, or correct the URL",
    "UnsupportedS3AccesspointConfigurationError": "give the access point's region (AWS_REGION, or "
    "region_name in client_kwargs)",
    "AccessDenied": "allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket (without "
    "the last one S3 also says this of a key that does not exist)",
    "AccessDenied on writing": "allow s3:PutObject, or give what a bucket policy demands of every "
    "write, such as storage_options={'s3_additional_kwargs': {'ServerSideEncryption': 'aws:kms'}} "
    "(a policy that demands If-None-Match has to leave this prefix out)",
    "InvalidAccessKeyId": "check the credentials",
    "SignatureDoesNotMatch": "check the credentials, and whether a proxy or the server itself "
    "changes the keys in URLs, such as %2F",
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "PermanentRedirect": "give the bucket's region",
    "AuthorizationHeaderMalformed": "give the bucket's region",
    "NotImplemented": "choose a server that has what was asked for",
    "NotImplemented on writing": "if this was a conditional write, as every change of a record is, "
    "choose a server that has If-None-Match and If-Match",
    "SlowDown": "try again later, or lower max_concurrency",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give "
    "storage_options: key and secret, profile, or anon=True",
    "PartialCredentialsError": "give both the key and the secret",
    "EndpointConnectionError": "check endpoint_url, the region and the network",
    "ConnectTimeoutError": "check endpoint_url, the region and the network",
    "ReadTimeoutError": "check endpoint_url, the region and the network",
    "SSLError": "check endpoint_url, the certificate and the proxy",
    "ProxyConnectionError": "check HTTP_PROXY and HTTPS_PROXY",
    "ProfileNotFound": "check AWS_PROFILE, or profile in storage_options",
    "HTTPClientError at exit": "the interpreter is exiting and lets nobody begin a thread, which a "
    "new connection needs: write before that, or over a connection that is open already",
}
_WRITES = {
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
}


class RefusedError(OSError):
    """S3 refused a write, because its condition did not hold.

    `answer` is the HTTP status, or `CONFLICT` where S3 could not decide between two writers.
    """

    def __init__(self, answer: str) -> None:
        super().__init__(f"S3 refused a conditional write: {answer}")
        self.answer = answer


def explained(error: Exception, bucket: str) -> Exception:
    """The error to raise for one of botocore's: one that explains it, or the error itself.

    The explained error is the cause of the other one. A missing object is a `FileNotFoundError`.
    """
    status, code, message = answer_of(error)
    operation = getattr(error, "operation_name", "")
    circumstance = ""
    if operation in _WRITES:
        circumstance = " on writing"
    elif "cannot schedule new futures" in message:
        circumstance = " at exit"
    remedy = _REMEDIES.get(code + circumstance) or _REMEDIES.get(code)
    if not status and remedy is None:
        return error
    text = message.rstrip(".")
    if status:
        if code == str(status):  # botocore repeats the status if the reply has no error code.
            code, remedy = "without an error code", "check endpoint_url and what answers there"
        answer = f"S3 answered {status} {code} for bucket {bucket!r}"
        text = f"{answer}: {text}" if text else answer
    if remedy:
        text = f"{text}: {remedy}"
    told = PermissionError(text) if status in (401, 403) else OSError(text)
    if code == "NoSuchKey" and operation == "GetObject":
        told = FileNotFoundError(message)
    told.__cause__ = error
    return told


def refusal(error: BaseException | None, condition: Mapping[str, str]) -> RefusedError | None:
    """The refusal that an error of botocore's stands for, or None if it is another error."""
    status, code, _ = answer_of(error)
    if status not in (409, 412) and (code != "NoSuchKey" or "IfMatch" not in condition):
        return None
    # `CONFLICT` is about the condition. Any other 409 tells nothing about conditions.
    return RefusedError(code if code == CONFLICT else str(status))


def answer_of(error: BaseException | None) -> tuple[int, str, str]:
    """HTTP status, error code and message of botocore's `ClientError`.

    For any other error they are 0, the name of its class and its text.
    """
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0, type(error).__name__, str(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    details = response.get("Error", {})
    return status, str(details.get("Code", "")), str(details.get("Message") or "")
