"""Servers on this machine that answer like the object storage of Google and Amazon."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator

BUCKET = "bucket"


@contextlib.contextmanager
def emulated_storage(scheme: str) -> Iterator[dict[str, str]]:
    """Starts a server for `gs` or `s3` with an empty bucket. Yields the environment variables that name it.

    Needs the package gcp-storage-emulator or moto.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        from gcp_storage_emulator.server import create_server

        server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
        variables = {"STORAGE_EMULATOR_HOST": address}
    else:
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        variables = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        variables["AWS_DEFAULT_REGION"] = "us-east-1"
    server.start()
    try:
        with without_settings(variables), tempfile.TemporaryDirectory() as empty:
            os.environ["BOTO_CONFIG"] = os.environ["AWS_CONFIG_FILE"] = f"{empty}/none"
            if scheme == "s3":
                import boto3

                boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield variables
    finally:
        server.stop()


@contextlib.contextmanager
def without_settings(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables, and restores the environment at the end. fsspec forgets its connections."""
    import fsspec

    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        fsspec.AbstractFileSystem.clear_instance_cache()
