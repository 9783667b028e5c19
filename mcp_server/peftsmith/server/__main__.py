"""Run as: python -m peftsmith.server [--http PORT]

Knows: the command line of the server.
Does not know: what it serves.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys

from peftsmith.errors import PeftsmithError


def main() -> int:
    """Serve on stdio, or on 127.0.0.1 with --http. 2 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m peftsmith.server", description="peftsmith's MCP server.")
    parser.add_argument(
        "--http", type=int, metavar="PORT", help="Streamable HTTP on 127.0.0.1; needs PEFTSMITH_HTTP_TOKEN"
    )
    options = parser.parse_args()
    # Collections while the SDK builds its models find nothing and take a tenth of the start; build() turns them on.
    gc.disable()
    try:
        from peftsmith.server import app

        app.set_roots(os.environ)
        if options.http is None:
            app.serve_stdio()
        else:
            from peftsmith.server import http

            http.serve_http(options.http, os.environ.get(http.TOKEN_VARIABLE, ""))
    except PeftsmithError as error:
        print(f"peftsmith: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
