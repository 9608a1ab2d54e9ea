"""A multipart form with one file and a length known beforehand, so that the file can be streamed."""

import re
import secrets
from collections.abc import Mapping
from typing import Final

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}")


class MultipartForm:
    """What goes before and after the file's bytes."""

    def __init__(self, fields: Mapping[str, str], *, file_field: str, filename: str, file_size: int) -> None:
        """Lay the form out.

        Args:
            fields: Text fields, sent before the file.
            file_field: The name of the file's part.
            filename: A plain name without path; see `plain_filename`.
            file_size: In bytes.

        Raises:
            ValueError: A name would break the header it stands in.
        """
        boundary = f"zg-{secrets.token_hex(16)}"
        for name in (*fields, file_field, filename):
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError("not a plain name")
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{file_field}"; filename="{filename}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        self.head = "".join(parts).encode()
        self.tail = f"\r\n--{boundary}--\r\n".encode()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.content_length = len(self.head) + file_size + len(self.tail)


def plain_filename(name: str, *, extensions: tuple[str, ...]) -> str:
    """Return a file's name as it may stand in a form.

    Args:
        name: The name without folder.
        extensions: Accepted ones, lower case with dot; the first is put in place of any other.

    Returns:
        The name itself if it is plain, else `file` and the extension.
    """
    stem, dot, end = name.rpartition(".")
    extension = f".{end}" if dot and f".{end}".lower() in extensions else extensions[0]
    plain = f"{stem if dot else name}{extension}"
    return plain if _PLAIN_NAME.fullmatch(plain) else f"file{extension}"
