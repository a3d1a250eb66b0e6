"""The page's server: headers on every answer, and only the loopback listens."""

import socket
import threading
from contextlib import ExitStack

import pytest

from distilbert_kit.serve import server
from distilbert_kit.serve.app import HEADERS, create_app
from distilbert_kit.serve.comparison import Comparison
from distilbert_kit.serve.server import create_server


def test_every_answer_of_the_server_has_the_headers(original, tmp_path):
    """Also what is refused before the app sees it; nothing but the loopback listens."""
    served = create_server(create_app(Comparison({"m": original}, tmp_path)), "127.0.0.1", 0)
    threading.Thread(target=served.run, daemon=True).start()
    where = ("127.0.0.1", served.effective_port)
    for request in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /static/..%2f..%2fdemo.py HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET //etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n" + b"a" * 9_999_999,
    ):
        with socket.create_connection(where, timeout=20) as sender:
            sender.sendall(request)
            sender.shutdown(socket.SHUT_WR)
            answer = sender.makefile("rb").read().decode()
        head = answer.partition("\r\n\r\n")[0].lower()
        for name, value in HEADERS.items():
            assert f"{name}: {value}".lower() in head, request[:40]
        assert "entry_point" not in answer and "root:" not in answer
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", served.effective_port), timeout=2)
    served.close()


MEBIBYTE = b"100000\r\n%b\r\n" % bytes(1 << 20)  # as a chunk


@pytest.mark.parametrize(
    "rest",
    [
        b"Expect: 100-continue\r\nContent-Length: 3000000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + 13 * MEBIBYTE + b"0\r\n\r\n",
    ],
    ids=["expect", "chunked"],
)
def test_the_sender_of_too_much_reads_why(original, tmp_path, rest):
    """At once if it waits to be asked for the body, else when all of it was sent."""
    served = create_server(create_app(Comparison({"m": original}, tmp_path)), "127.0.0.1", 0)
    threading.Thread(target=served.run, daemon=True).start()
    with socket.create_connection(("127.0.0.1", served.effective_port), timeout=60) as sender:
        sender.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\n" + rest)
        answer = sender.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ") and b"exceeds max_body" in answer
    served.close()


def test_idle_connections_keep_nobody_out_and_are_closed(original, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "ARRIVAL", 1.0)
    served = create_server(create_app(Comparison({"m": original}, tmp_path)), "127.0.0.1", 0)
    threading.Thread(target=served.run, daemon=True).start()
    where = ("127.0.0.1", served.effective_port)
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(where, 60)) for _ in range(110)]
        with socket.create_connection(where, timeout=60) as sender:
            sender.sendall(b"GET /state HTTP/1.0\r\n\r\n")
            assert b" 200 " in sender.recv(100)
        assert all(each.recv(1) == b"" for each in idle)
    served.close()


def test_a_name_with_two_addresses_is_served_at_the_first(original, tmp_path, monkeypatch):
    found = socket.getaddrinfo

    def both(host, *given, **named):
        if host != "two.test":
            return found(host, *given, **named)
        return found("127.0.0.1", *given, **named) + found("127.0.0.2", *given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", both)
    served = create_server(create_app(Comparison({"m": original}, tmp_path)), "two.test", 0)
    threading.Thread(target=served.run, daemon=True).start()
    with socket.create_connection(("127.0.0.1", served.effective_port), timeout=20) as sender:
        sender.sendall(b"nonsense\r\n\r\n")
        answer = sender.makefile("rb").read().decode()
    assert '{"error": ' in answer
    served.close()
