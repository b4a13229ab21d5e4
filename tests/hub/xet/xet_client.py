"""A process of its own that uploads files with hf_xet, as huggingface_hub does.

xet_client.py TOKEN_URL [--no-sha256] FILE…      prints a JSON list of {hash, sha256, size}
"""

from __future__ import annotations

import json
import sys

import hf_xet  # type: ignore[import-untyped]


def main(url: str, paths: list[str]) -> None:
    sha256 = hf_xet.COMPUTE_SHA256
    if paths[0] == "--no-sha256":
        sha256 = hf_xet.SKIP_SHA256
        paths = paths[1:]
    session = hf_xet.XetSession()
    with session.new_upload_commit(token_refresh_url=url, token_refresh_headers={}) as commit:
        handles = [commit.start_upload_file(path, sha256=sha256) for path in paths]
    infos = [handle.result().xet_info for handle in handles]
    print(json.dumps([{"hash": i.hash, "sha256": i.sha256, "size": i.file_size} for i in infos]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
