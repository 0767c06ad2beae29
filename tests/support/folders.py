"""Files of a sweep's folder, changed and sealed again as the page on sweeps says they are."""

import hashlib
import io
import json
import zipfile

import numpy as np

END = b'"}'


def sealed(body):
    """Return the bytes with their checksum."""
    return body + hashlib.sha256(body).hexdigest().encode() + END


def content(file):
    """Return the content of a JSON file."""
    return json.loads(file.read_bytes())["content"]


def write_content(file, new):
    """Replace the content of a JSON file, with a correct checksum."""
    document = json.loads(file.read_bytes()) | {"content": new, "sha256": ""}
    file.write_bytes(sealed(json.dumps(document).encode()[: -len(END)]))


def write_arrays(file, arrays, compress=False):
    """Replace the arrays of a file, with a correct checksum."""
    with zipfile.ZipFile(file) as archive:
        comment = archive.comment
    data = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(data, **arrays)
    with zipfile.ZipFile(data, "a") as archive:
        archive.comment = comment
    file.write_bytes(sealed(data.getvalue()[: -64 - len(END)]))


def contents(folder):
    """Return the bytes of all files except the lock, by name."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
