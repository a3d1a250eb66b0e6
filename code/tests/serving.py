"""The demo's server inside of a test, ended with all of its threads."""

import threading
from contextlib import contextmanager
from functools import partial

from waitress import wasyncore

from distilbert_kit.serve.app import create_app
from distilbert_kit.serve.server import create_server


@contextmanager
def serving_here(comparison, host="127.0.0.1"):
    """The port of a server of the models.

    A thread of waitress that is still at work writes to a pipe. Were it closed under that thread,
    its number could be another file's by then, which would get the byte.
    """
    server = create_server(create_app(comparison), host, 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.task_dispatcher.shutdown()
        server.trigger.pull_trigger(partial(wasyncore.close_all, server._map))
        thread.join(timeout=20)
        assert not thread.is_alive()
