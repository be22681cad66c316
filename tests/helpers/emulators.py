"""Servers on this machine that answer like the object storage of Google and Amazon."""

import contextlib
import logging
import os
import socket
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
    for name in ("werkzeug", "gcp_storage_emulator"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    server.start()
    try:
        with storage_settings(variables):
            if scheme == "s3":
                import boto3

                boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield variables
    finally:
        server.stop()


@contextlib.contextmanager
def storage_settings(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables, and restores the environment at the end. fsspec forgets its connections."""
    import fsspec

    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for scheme in ("gs", "s3"):
            with contextlib.suppress(ImportError):
                fsspec.get_filesystem_class(scheme).clear_instance_cache()
