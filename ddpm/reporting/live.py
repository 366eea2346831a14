"""Serves a report on this machine, and makes it anew as the run goes on."""

import hashlib
import http.server
import threading

from ddpm.runtime.errors import UserError


class Server(http.server.ThreadingHTTPServer):
  """Serves one page on 127.0.0.1.

  Args:
    port: to listen on; 0 for any that is free.
    stamp: function () -> string that changes when the page would.
    render: function () -> HTML. It is called when the stamp has changed and
      somebody asks.

  Raises:
    UserError: the port cannot be used.
  """

  daemon_threads = True

  def __init__(self, port, *, stamp, render):
    self._stamp, self._render = stamp, render
    # Browsers ask in several threads.
    self._rendering = threading.Lock()
    self._tag = self._page = None
    try:
      super().__init__(('127.0.0.1', port), _Handler)
    except (OSError, OverflowError) as e:
      raise UserError(
          f'--port={port} cannot be used ({e}): use another, or 0 for any that'
          ' is free'
      ) from e

  @property
  def address(self):
    """Where the page is."""
    return f'http://127.0.0.1:{self.server_port}/'

  def page(self):
    """The page's tag, which changes with it, and the page in UTF-8."""
    with self._rendering:
      stamp = self._stamp()
      tag = f'"{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"'
      if tag != self._tag:
        self._page = self._render().encode()
        self._tag = tag
      return self._tag, self._page


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers with the page, or that it is the one that the browser has."""

  def do_GET(self):
    if self.path != '/':
      self.send_error(404)
      return
    try:
      tag, page = self.server.page()
    except UserError as e:
      self.send_error(503, explain=str(e))
      return
    if self.headers['If-None-Match'] == tag:
      self._answer(304, tag, b'')
    else:
      self._answer(200, tag, page)

  def _answer(self, code, tag, body):
    self.send_response(code)
    self.send_header('ETag', tag)
    self.send_header('Cache-Control', 'no-cache')
    self.send_header('Content-Type', 'text/html; charset=utf-8')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *args):
    """Says nothing: a page asks every few seconds."""
