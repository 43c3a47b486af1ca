"""The embedder as a server: OpenAI's dialect, Text Embeddings Inference's, and routes of our own (`grace serve`).

    door.py       what every request passes: an id, hosts, the key, one log line, errors in the client's dialect
    admission.py  places for requests, so that memory stays bounded; body.py reads what they send
    service.py    what is asked of the model: requests that wait together are one batch
    openai_dialect.py, tei_dialect.py, own_routes.py, page.py    what is served
    app.py        puts them together; running.py serves them until SIGTERM; command.py is the command line
    protocol.py   how long a connection is waited for

Importing this loads no server: `create_app` and `run_server` are in `app` and `running`.
"""

from __future__ import annotations

from grace_retrieval.serve.options import ServeOptions

__all__ = ["ServeOptions"]
